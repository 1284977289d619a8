"""From a reply to a chain of thought: steps that are five, boxes that lie in the image and move with it."""

from __future__ import annotations

import pytest

from rl.annotate.steps import NO_BOX, NO_STEPS, TOO_LONG, NoChain, chain_of_thought, question, sent_size

KEY = "reasoning_verbose"
STEPS = ["A dog on a lawn.", "The dog.", "It lies at [28, 56, 84, 112].", "It becomes a cat.", "A cat on a lawn."]


def reply(*steps: str, mark: str = "{}. {}") -> str:
    return "\n".join(mark.format(number, step) for number, step in enumerate(steps or STEPS, start=1))


def chain(text: str) -> str | NoChain:
    """The image was sent at twice its width and half its height."""
    return chain_of_thought(text, (112, 112), (56, 224), KEY)


EXPECTED = "1. A dog on a lawn. 2. The dog. 3. It lies at [14, 112, 42, 224]. 4. It becomes a cat. 5. A cat on a lawn."


@pytest.mark.parametrize(
    "text",
    [
        reply(),
        reply(mark="{}) {}"),
        reply(mark="**{}.** {}"),
        reply(mark="Step {}: {}"),
        reply(mark="  - {}. {}\n"),
        "Here is what to think:\n\n" + reply(),
        reply().replace("a lawn.\n2.", "a\n   lawn.\n\n2."),
    ],
)
def test_steps_are_found_however_they_are_written(text: str) -> None:
    """Guards chains that are thrown away over Markdown, and line breaks and marks that would be trained on."""
    assert chain(text) == EXPECTED


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I am sorry, I cannot help with that.",
        reply(*STEPS[:4]),
        reply(*STEPS, "A sixth."),
        reply(*STEPS[:3], " ", STEPS[4]),
        reply().replace("2.", "3.", 1),
        reply() + "\n" + reply(),
        reply().replace("\n", " "),
    ],
)
def test_other_than_five_steps_is_no_chain(text: str) -> None:
    """Guards half a chain, two of them and a refusal from becoming training text."""
    found = chain(text)
    assert isinstance(found, NoChain) and found.kind == NO_STEPS


@pytest.mark.parametrize(
    "where", ["Left of the tree.", "[1, 2, 3]", "[28, 56, 28, 112]", "[84, 56, 28, 112]", "[200, 200, 300, 300]"]
)
def test_a_place_that_is_none_is_no_chain(where: str) -> None:
    """Guards step 3 without a box, and boxes without an area in the image."""
    found = chain(reply(*STEPS[:2], where, *STEPS[3:]))
    assert isinstance(found, NoChain) and found.kind == NO_BOX


def test_boxes_of_every_step_are_taken_back_to_the_source() -> None:
    """Guards text whose boxes count two images, and a box that sticks out."""
    found = chain(reply(*STEPS[:2], "[28, 56, 84, 112] and [100, -4, 130, 20]", *STEPS[3:4], "See [28, 56, 84, 112]."))
    assert isinstance(found, str)
    assert "3. [14, 112, 42, 224] and [50, 0, 56, 40]" in found and found.endswith("5. See [14, 112, 42, 224].")


def test_a_chain_that_training_would_cut_is_left_out() -> None:
    """Guards the end of a chain, which training cuts at 1,750 characters with the key in front."""
    room = 1750 - len(f"{KEY}: ") - len(EXPECTED)
    longer = reply(STEPS[0] + "x" * room, *STEPS[1:])
    assert isinstance(chain(longer), str)
    found = chain(longer.replace("x", "xx", 1))
    assert isinstance(found, NoChain) and found.kind == TOO_LONG


@pytest.mark.parametrize(
    ("size", "sent"), [((512, 512), (504, 504)), ((100, 400), (252, 1036)), ((3000, 10), (8876, 28))]
)
def test_images_are_sent_in_whole_cells(size: tuple[int, int], sent: tuple[int, int]) -> None:
    """Guards boxes that are off by the model's own resizing to multiples of 28."""
    assert sent_size(size, 262144) == sent


def test_the_question_tells_size_and_instruction() -> None:
    text = question("make it\n red {width}", (504, 252))
    assert "504 pixels wide and 252 pixels high" in text and "[0, 0, 504, 252]" in text
    assert "\nEditing instruction: make it red {width}\n" in text
