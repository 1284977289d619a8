"""The page itself: its parts, where they stand, and what its buttons do.

Everything that it needs comes from this server; fonts are the reader's own. One edit is sampled at a time, other
visitors wait in a queue and see their place in it. What was edited stays with the visitor who asked for it, and is gone
with the visit.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.processing_utils import save_pil_to_cache
from gradio.utils import get_upload_folder

from emu3.boxes import COLOURS
from emu3.demo.session import MAX_SAMPLES, Comparison, Settings, edit_image, examples
from emu3.errors import UserError
from emu3.mllm.editor import Editor

TITLE = "EARL: edit an image by an instruction"
DAY_S = 86400
NEW_SEEDS = 1_000_000
"""A new seed is below it: short enough to be read out."""
REMEMBERED = 12
"""Results of a visit that can be gone back to."""
THEME = gr.themes.Default(
    primary_hue="slate",
    neutral_hue="slate",
    radius_size="sm",
    spacing_size="sm",
    font=["system-ui", "sans-serif"],
    font_mono=["monospace"],
).set(  # gradio's own greys are too faint to be read
    body_text_color_subdued="*neutral_500",
    body_text_color_subdued_dark="*neutral_400",
    input_placeholder_color="*neutral_500",
    input_placeholder_color_dark="*neutral_400",
)
# Whole images at any aspect, in one screen of 1280x900; a long chain of thought scrolls in its own box, as running
# text (font size 0: gradio's markup has spaces between the pieces).
SOURCE_HEIGHT, COMPARE_HEIGHT, STRIP_HEIGHT, THOUGHT_HEIGHT = 200, 390, 138, 150
SMALL_STRIP_HEIGHT = 100
CSS = f"""
.gradio-container {{ width: 100% !important; max-width: 1240px !important; margin: 0 auto; }}
#source img {{ width: 100%; height: 100%; object-fit: contain; }}
.strip .grid-wrap {{ overflow: hidden; }}
.strip .grid-container {{ padding-top: 22px; grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)); }}
.strip .thumbnail-item {{ height: {STRIP_HEIGHT - 40}px; aspect-ratio: auto; }}
.small.strip .thumbnail-item {{ height: {SMALL_STRIP_HEIGHT - 36}px; display: flex; align-items: flex-start; }}
.small.strip .grid-container {{ display: flex !important; overflow-x: auto; }}
.small.strip .gallery-item {{ flex: 0 0 calc((100% - 12px) / 3); }}
.small.strip .thumbnail-item img {{ height: calc(100% - 20px) !important; }}
.small.strip .caption-label {{ max-width: 100%; left: 0; bottom: 0; font-size: 11px; }}
#chain {{ max-height: {THOUGHT_HEIGHT}px; overflow-y: auto !important; }}
#chain .textfield {{ display: block; font-size: 0; word-break: normal; overflow-wrap: anywhere; }}
#chain .token-container {{ display: inline; }}
#chain .token {{ margin: 0; padding: 0; }}
#chain .text {{ font-size: var(--text-md); }}
#chain .textfield, #chain .textfield * {{ line-height: 21px; }}
#chain .highlighted .text {{ background: inherit; padding: 1px 2px; white-space: nowrap; }}
#compare {{ scroll-margin-top: 8px; }}
@media (max-width: 700px) {{
  #compare {{ height: 280px !important; }}
  #compare img {{ max-height: 278px !important; }}
}}
"""
# Ctrl+Enter is the button; on a screen of one column what was asked for is brought into view.
HEAD = """<script>
document.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
  event.preventDefault();
  document.querySelector("#edit")?.click();
});
</script>"""
TO_RESULTS = """() => {
  if (window.innerWidth < 900) document.querySelector("#compare")?.scrollIntoView({ behavior: "smooth" });
}"""
TO_SOURCE = """() => document.querySelector("#source")?.scrollIntoView({ behavior: "smooth", block: "nearest" })"""


class Stopped(Exception):  # a visitor's wish, no error
    """The visitor who asked for an edit has pressed Stop, or left."""


@dataclass(frozen=True)
class Result:
    """What a visitor asked for, and what came of it. image: the path of the upload."""

    image: str
    instruction: str
    settings: Settings
    comparison: Comparison


def uploaded_path(payload: ImageData | None) -> str | None:
    """The path of what a visitor has uploaded. Gradio's own reading of a file that holds no image ends in a traceback:
    it is left to this project's.

    Raises gr.Error for any other path: a client can send what it likes, and gradio looks only at paths that are marked
    as files.
    """
    if payload is None or payload.path is None:
        return None
    if not Path(payload.path).resolve().is_relative_to(Path(get_upload_folder()).resolve()):
        raise gr.Error("This image was not uploaded here", print_exception=False)
    return payload.path


def build_page(editor: Editor, caption: str) -> gr.Blocks:
    """The page for an editor. caption: a line of Markdown below the title."""
    running: dict[str | None, Event] = {}  # by visit
    shown_examples = examples()

    def edit(
        image: str | None,
        instruction: str,
        n: float,
        temperature: float,
        seed: int | None,
        new_seed: bool,
        think: bool,
        past: list[Result],
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how gradio is told to hand one over
    ) -> Any:
        stop = running[request.session_hash] = Event()

        def report(done: int, most: int) -> None:
            if stop.is_set():
                raise Stopped
            progress(done / most, desc=f"{done} of at most {most} tokens")

        progress(0, desc="Reading the image")
        settings = Settings(int(n), temperature, secrets.randbelow(NEW_SEEDS) if new_seed else seed, think)
        try:
            comparison = edit_image(editor, image, instruction, settings, report)
        except UserError as error:
            gr.Warning(str(error), title="Not edited")  # not gr.Error, which covers the edits that are there
            return gr.skip()
        except Stopped:
            return gr.skip()
        finally:
            running.pop(request.session_hash, None)
        assert image is not None
        result = Result(image, instruction, settings, comparison)
        past = [result, *past][:REMEMBERED]
        strip = gr.update(
            value=[(each.comparison.view(each.comparison.edits[0].image), each.instruction) for each in past],
            visible=True,
            selected_index=None,
        )
        return {seed_field: settings.seed, history: past, history_strip: strip, **shown(result)}

    def shown(result: Result) -> dict[Any, Any]:
        comparison = result.comparison
        width, height = comparison.source.size
        larger = f" (shown {comparison.scale}x)" if comparison.scale > 1 else ""
        gallery = gr.update(
            value=[comparison.view(edit.image) for edit in comparison.edits],
            label=f"Edits of {width}x{height} pixels{larger}, seed {result.settings.seed}",
            selected_index=0,
            columns=max(4, len(comparison.edits)),
        )
        return {current: result, edits: gallery, **chosen(result, 0)}

    def chosen(result: Result, index: int) -> dict[Any, Any]:
        comparison = result.comparison
        thought = comparison.thought(index)
        image, text = thought or (None, [])
        width, height = comparison.source.size
        name = f"edit-{index + 1}-seed-{result.settings.seed}"
        path = save_pil_to_cache(comparison.edits[index].image, get_upload_folder(), name, "png")
        return {
            chosen_index: index,
            compare: gr.update(value=comparison.before_after(index), label=f"Before and after: edit {index + 1}"),
            reasoning: gr.update(visible=thought is not None),
            boxes: image,
            chain: text,
            download: gr.update(value=path, label=f"Download edit {index + 1} ({width}x{height})", interactive=True),
            again: gr.update(value=f"Edit this one: {index + 1}", interactive=True),
        }

    def choose(result: Result, event: gr.SelectData) -> dict[Any, Any]:
        return chosen(result, event.index)

    def go_back(past: list[Result], event: gr.SelectData) -> dict[Any, Any]:
        result = past[event.index]
        settings = result.settings
        return {
            instruction: result.instruction,
            n: settings.n,
            temperature: settings.temperature,
            seed_field: settings.seed,
            new_seed: False,  # the same again, until somebody says otherwise
            think: settings.think,
            source: result.image,
            **shown(result),
        }

    def take(result: Result, index: int) -> tuple[Any, str]:
        return result.comparison.edits[index].image, ""

    def take_example(event: gr.SelectData) -> tuple[Any, str]:
        return shown_examples[event.index]

    def ask_to_stop(request: gr.Request) -> None:
        if request.session_hash in running:
            running[request.session_hash].set()

    def strip(label: str, height: int, **more: Any) -> gr.Gallery:
        return gr.Gallery(
            label=label,
            format="png",
            height=height,
            rows=1,
            allow_preview=False,
            object_fit="contain",
            interactive=False,
            buttons=[],
            elem_classes=["strip", "small"] if height == SMALL_STRIP_HEIGHT else ["strip"],
            **more,
        )

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DAY_S, DAY_S)) as page:
        current, chosen_index, history = gr.State(), gr.State(0), gr.State([])
        gr.Markdown(f"## {TITLE}\n{caption}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                source = gr.Image(
                    label="Image",
                    sources=["upload", "clipboard"],
                    format="png",
                    height=SOURCE_HEIGHT,
                    elem_id="source",
                )
                source.preprocess = uploaded_path  # type: ignore[method-assign]
                instruction = gr.Textbox(
                    label="Instruction", placeholder="make the sky purple (Ctrl+Enter edits)", lines=2, max_lines=4
                )
                with gr.Row():
                    n = gr.Slider(1, MAX_SAMPLES, value=4, step=1, label="Samples")
                    temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature")
                with gr.Row():
                    seed_field = gr.Number(value=0, minimum=0, precision=0, label="Seed", min_width=120)
                    with gr.Column(scale=2, min_width=180):
                        new_seed = gr.Checkbox(value=True, label="New seed every time")
                        think = gr.Checkbox(label="Think first, in words")
                with gr.Row():
                    button = gr.Button("Edit", variant="primary", scale=3, elem_id="edit")
                    stop = gr.Button("Stop", scale=1, min_width=80)
                example_strip = strip("Examples", SMALL_STRIP_HEIGHT, value=shown_examples, elem_id="examples")
                history_strip = strip("This visit's edits", SMALL_STRIP_HEIGHT, visible=False, elem_id="history")
            with gr.Column(scale=3, min_width=480):
                compare = gr.ImageSlider(
                    label="Before and after",
                    format="png",
                    height=COMPARE_HEIGHT,
                    max_height=COMPARE_HEIGHT - 2,  # less its border, or the two images do not cover each other
                    buttons=["fullscreen"],
                    elem_id="compare",
                )
                edits = strip("Edits", STRIP_HEIGHT, elem_id="edits")
                with gr.Row():
                    again = gr.Button("Edit this one", interactive=False)
                    download = gr.DownloadButton("Download", interactive=False)
                with gr.Row(visible=False, equal_height=True) as reasoning:
                    boxes = gr.Image(
                        label="Boxes",
                        show_label=False,
                        format="png",
                        interactive=False,
                        height=THOUGHT_HEIGHT,
                        buttons=[],
                        elem_id="boxes",
                    )
                    chain = gr.HighlightedText(
                        label="Chain of thought",
                        color_map={colour: colour for colour in COLOURS},
                        show_inline_category=False,
                        elem_id="chain",
                    )
        quiet: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        chosen_parts = [chosen_index, compare, reasoning, boxes, chain, download, again]
        shown_parts = [current, edits, *chosen_parts]
        settings_parts = [instruction, n, temperature, seed_field, new_seed, think]
        edited = gr.on(
            [button.click, instruction.submit],
            edit,
            [source, *settings_parts, history],
            [seed_field, history, history_strip, *shown_parts],
            show_progress_on=compare,
            api_visibility="private",
        )
        gr.on([button.click, instruction.submit], None, js=TO_RESULTS, api_visibility="private")
        # The running one ends itself at its next token; one that waits in the queue is taken out of it.
        stop.click(ask_to_stop, queue=False, **quiet)
        stop.click(None, cancels=[edited], **quiet)
        page.unload(ask_to_stop)
        edits.select(choose, current, chosen_parts, **quiet)
        history_strip.select(go_back, history, [source, *settings_parts, *shown_parts], **quiet)
        history_strip.select(None, js=TO_RESULTS, api_visibility="private")
        again.click(take, [current, chosen_index], [source, instruction], **quiet).then(None, js=TO_SOURCE)
        example_strip.select(take_example, None, [source, instruction], **quiet)
    page.has_launched = True  # else gradio copies a marked path from anywhere on the disk to its uploads, unasked
    return page.queue(default_concurrency_limit=1, max_size=32, api_open=False)
