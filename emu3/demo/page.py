"""The page itself: its parts, where they stand, and what the button does.

Everything that it needs comes from this server; fonts are the reader's own. One edit is sampled at a time, other
visitors wait in a queue and see their place in it. What was edited stays with the visitor who asked for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from gradio.utils import get_upload_folder

from emu3.boxes import COLOURS
from emu3.demo.session import MAX_SAMPLES, Comparison, Settings, edit_image
from emu3.errors import UserError
from emu3.mllm.editor import Editor

TITLE = "EARL: edit an image by an instruction"
DAY_S = 86400
THEME = gr.themes.Default(
    primary_hue="slate",
    neutral_hue="slate",
    radius_size="sm",
    spacing_size="sm",
    font=["system-ui", "sans-serif"],
    font_mono=["monospace"],
)
# Whole images at any aspect, in one screen of 1280x900; a long chain of thought scrolls in its own box, as running
# text (font size 0: gradio's markup has spaces between the pieces).
SOURCE_HEIGHT, COMPARE_HEIGHT, EDITS_HEIGHT, THOUGHT_HEIGHT = 231, 400, 162, 190
CSS = f"""
.gradio-container {{ width: 100% !important; max-width: 1240px !important; margin: 0 auto; }}
#source img {{ width: 100%; height: 100%; object-fit: contain; }}
#edits .grid-wrap {{ overflow: hidden; }}
#edits .grid-container {{ padding-top: 22px; grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)); }}
#edits .thumbnail-item {{ height: {EDITS_HEIGHT - 40}px; aspect-ratio: auto; }}
#chain {{ max-height: {THOUGHT_HEIGHT}px; overflow-y: auto !important; }}
#chain .textfield {{ display: block; font-size: 0; word-break: normal; overflow-wrap: anywhere; }}
#chain .token-container {{ display: inline; }}
#chain .token {{ margin: 0; padding: 0; }}
#chain .text {{ font-size: var(--text-md); }}
#chain .textfield, #chain .textfield * {{ line-height: 21px; }}
#chain .highlighted .text {{ background: inherit; padding: 1px 2px; white-space: nowrap; }}
"""


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

    def edit(
        image: str | None,
        instruction: str,
        n: float,
        temperature: float,
        seed: int | None,
        think: bool,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # how gradio is told to hand one over
    ) -> Any:
        progress(0, desc="Reading the image")
        settings = Settings(int(n), temperature, seed, think)
        try:
            result = edit_image(
                editor,
                image,
                instruction,
                settings,
                lambda done, most: progress(done / most, desc=f"{done} of at most {most} tokens"),
            )
        except UserError as error:
            gr.Warning(str(error), title="Not edited")  # not gr.Error, which covers the edits that are there
            return gr.skip()
        width, height = result.source.size
        shown = f", shown {result.scale} times as large" if result.scale > 1 else ""
        gallery = gr.update(
            value=[result.view(edit.image) for edit in result.edits],
            label=f"Edits of {width}x{height} pixels{shown}; click one to compare it",
            selected_index=0,
            columns=max(4, len(result.edits)),
        )
        return {results: result, edits: gallery, **chosen(result, 0)}

    def choose(result: Comparison, event: gr.SelectData) -> dict[Any, Any]:
        return chosen(result, event.index)

    def chosen(result: Comparison, index: int) -> dict[Any, Any]:
        thought = result.thought(index)
        image, text = thought or (None, [])
        return {
            compare: gr.update(value=result.before_after(index), label=f"Before and after: edit {index + 1}"),
            reasoning: gr.update(visible=thought is not None),
            boxes: image,
            chain: text,
        }

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(DAY_S, DAY_S)) as page:
        results = gr.State()
        gr.Markdown(f"## {TITLE}\n{caption}")
        with gr.Row():
            with gr.Column(scale=2, min_width=320):
                source = gr.Image(
                    label="Image", sources=["upload", "clipboard"], height=SOURCE_HEIGHT, elem_id="source"
                )
                source.preprocess = uploaded_path  # type: ignore[method-assign]
                instruction = gr.Textbox(label="Instruction", placeholder="make the sky purple", lines=2, max_lines=4)
                with gr.Row():
                    n = gr.Slider(1, MAX_SAMPLES, value=4, step=1, label="Samples")
                    temperature = gr.Slider(0, 2, value=1, step=0.05, label="Temperature")
                with gr.Row():
                    seed = gr.Number(value=0, minimum=0, precision=0, label="Seed")
                    think = gr.Checkbox(label="Think first", info="Write a chain of thought, then edit")
                button = gr.Button("Edit", variant="primary")
            with gr.Column(scale=3, min_width=480):
                compare = gr.ImageSlider(
                    label="Before and after",
                    format="png",
                    height=COMPARE_HEIGHT,
                    max_height=COMPARE_HEIGHT - 2,  # less its border, or the two images do not cover each other
                    buttons=["fullscreen"],
                    elem_id="compare",
                )
                edits = gr.Gallery(
                    label="Edits",
                    format="png",
                    height=EDITS_HEIGHT,
                    rows=1,
                    allow_preview=False,
                    object_fit="contain",
                    interactive=False,
                    buttons=[],
                    elem_id="edits",
                )
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
        chosen_parts = [compare, reasoning, boxes, chain]
        gr.on(
            [button.click, instruction.submit],
            edit,
            [source, instruction, n, temperature, seed, think],
            [results, edits, *chosen_parts],
            show_progress_on=compare,
            api_visibility="private",
        )
        edits.select(choose, results, chosen_parts, show_progress="hidden", api_visibility="private")
    page.has_launched = True  # else gradio copies a marked path from anywhere on the disk to its uploads, unasked
    return page.queue(default_concurrency_limit=1, max_size=32, api_open=False)
