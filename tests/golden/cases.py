"""The inputs of the golden vectors."""

from __future__ import annotations

from typing import Any

from tests.golden.vectors import numbers

SMOOTH, ROUGH = (2, 3, 0, 40, 7), (7, 5, 1, 80, 3)
_SIZES = {"square": (64, 64), "wide": (150, 40), "tall": (33, 97), "small": (9, 5), "strip": (700, 6), "column": (4, 500)}
Spec = dict[str, Any]


def image(width: int, height: int, factors: tuple[int, ...] = ROUGH) -> Spec:
    return {"width": width, "height": height, "factors": list(factors)}


def clip(frames: int, width: int, height: int) -> list[Spec]:
    return [image(width, height, (3, 4, number + 1, 50, 20 * number)) for number in range(frames)]


def _shared(size: tuple[int, int]) -> list[Spec]:
    """What every family does, with images near its usual size."""
    width, height = size
    images = {**_SIZES, "usual": size, "large": (3 * width + 5, 2 * height - 3)}
    smooth = image(*size, SMOOTH)
    return [
        *({"name": name, "image": image(*sides)} for name, sides in images.items()),
        {"name": "smooth", "image": smooth},
        {"name": "too thin", "image": image(2500, 3)},
        {"name": "lanczos", "image": image(width + 31, height - 9), "constants": {"resample": 1}},
        {"name": "bilinear", "image": image(width + 31, height - 9), "constants": {"resample": 2}},
        {"name": "no normalisation", "image": smooth, "constants": {"do_normalize": False}},
        {"name": "no rescaling", "image": smooth, "constants": {"do_rescale": False}},
        {"name": "as it is", "image": smooth, "constants": {"do_resize": False}},
        {"name": "as it is, another size", "image": image(50, 51), "constants": {"do_resize": False}},
        {"name": "few tokens", "image": image(4 * width, 2 * height), "resolution": {"max_visual_tokens": 90}},
        {"name": "too few tokens", "image": smooth, "resolution": {"max_visual_tokens": 1}},
        {"name": "clip", "clip": clip(3, width - 6, height + 9)},
        {"name": "clip of one frame", "clip": clip(1, *size)},
    ]


FEEDS: dict[str, list[Spec]] = {
    "qwen2_vl": [
        *_shared((84, 112)),
        {"name": "few pixels", "image": image(300, 200), "resolution": {"min_pixels": 1, "max_pixels": 28 * 28 * 12}},
        {"name": "many pixels", "image": image(30, 20), "resolution": {"min_pixels": 28 * 28 * 90}},
        {"name": "clip of few tokens", "clip": clip(5, 200, 120), "resolution": {"max_visual_tokens": 60}},
        {"name": "thin and few tokens", "image": image(900, 20), "resolution": {"max_visual_tokens": 5, "min_pixels": 9999}},
    ],
    "llava_onevision": [
        *_shared((112, 112)),
        {"name": "one of several", "image": image(90, 41), "alone": False},
        {"name": "one of several, a strip", "image": image(3000, 7), "alone": False},
        {"name": "shrunk", "image": image(230, 200), "constants": {"max_crops": 2}},
        {"name": "one canvas", "image": image(230, 100), "resolution": {"max_visual_tokens": 110}},
    ],
    "llava_llama": _shared((240, 240)),
    "llava": [
        *_shared((56, 56)),
        {"name": "padded", "image": image(90, 41), "constants": {"do_pad": True}},
        {"name": "padded strip", "image": image(3000, 7), "constants": {"do_pad": True}},
        {"name": "not cropped", "image": image(90, 41), "constants": {"size": [56, 56], "do_center_crop": False}},
        {"name": "cropped from more", "image": image(90, 41), "constants": {"size": [70]}},
        {"name": "smaller than the crop", "image": image(90, 41), "constants": {"size": [40, 60]}},
    ],
}


def _user(*parts: str) -> Spec:
    content = [{"type": part} if part in ("image", "video") else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def _chats(placeholder: str, videos: bool) -> list[Spec]:
    question = "Where is the pink triangle?"
    one, other, shown = image(60, 60), image(100, 30, SMOOTH), clip(3, 60, 60)
    found = [
        {"name": "text", "messages": [_user(question)]},
        {"name": "image", "messages": [_user("image", question)], "images": [one]},
        {"name": "two images", "messages": [_user("image", "image", question)], "images": [one, other]},
        {"name": "image behind the text", "messages": [_user(question, "image")], "images": [one]},
        {"name": "text on both sides", "messages": [_user("Look. ", "image", " What is it?")], "images": [other]},
        {"name": "Unicode", "messages": [_user("image", "Où est le 三角形 🔺?\n\tBitte – «schnell»!  ")], "images": [one]},
        {"name": "a forged placeholder", "messages": [_user("image", f"What is {placeholder}?")], "images": [one]},
        {"name": "no text", "messages": [_user("image")], "images": [one]},
        {
            "name": "several turns",
            "messages": [
                {"role": "system", "content": [{"type": "text", "text": "Answer in one word."}]},
                _user("image", question),
                {"role": "assistant", "content": [{"type": "text", "text": "left"}]},
                _user("image", "And here?"),
            ],
            "images": [one, other],
        },
        {"name": "more parts than images", "messages": [_user("image", "image", question)], "images": [one]},
    ]
    seen = [
        {"name": "video", "messages": [_user("video", question)], "clips": [shown]},
        {"name": "image and video", "messages": [_user("image", "video", question)], "images": [other], "clips": [shown]},
    ]
    return found + (seen if videos else [{"name": "video", "messages": [_user("video", question)], "clips": [shown]}])


PROMPTS: dict[str, list[Spec]] = {
    "qwen2_vl": _chats("<|image_pad|>", videos=True),
    "llava_onevision": _chats("<image>", videos=True),
    "llava_llama": _chats("<image>", videos=True),
    "llava": _chats("<image>", videos=False),
}


def _situation(grids: list[list[int]], scores: list[float], distinct_rows: int = 4096) -> Spec:
    facts = {"distinct_rows": min(distinct_rows, len(scores)), "hidden_size": 8, "text_tokens": 5, "seed": 2**63 + 5}
    return {"grids": grids, "scores": scores, **facts}


def _scores(count: int, power: int = 1) -> list[float]:
    values: list[float] = ((numbers((count,), salt=4) + 0.5) ** power).tolist()
    return values


SITUATIONS: dict[str, Spec] = {
    "image": _situation([[1, 6, 8]], _scores(48)),
    "peaked": _situation([[1, 6, 8]], _scores(48, 8)),
    "clip": _situation([[4, 3, 5]], _scores(60, 4)),
    "images": _situation([[1, 4, 4], [1, 3, 7]], _scores(37, 2)),
    "clip and image": _situation([[2, 3, 3], [1, 4, 5]], _scores(38, 4)),
    "with newlines": _situation([[1, 4, 4], [1, 3, 8], [1, 1, 1]], _scores(41, 4)),
    "row": _situation([[1, 1, 40]], _scores(40)),
    "one token": _situation([[1, 1, 1]], [0.5]),
    "equals": _situation([[1, 5, 6]], [round(4 * score) / 4 for score in _scores(30)], distinct_rows=7),
    "nothing matters": _situation([[1, 4, 4]], [0.0] * 16),
}
BUDGETS: list[Spec] = [{"ratio": 0.5}, {"ratio": 0.05}, {"tokens": 7}, {"mass": 0.9}]
OPTIONS: list[tuple[str, Spec]] = [
    ("foveated", {"periphery": 0.75}),
    ("foveated", {"periphery": 0.0}),
    ("learned-mmr", {"weight": 0.9}),
    ("learned-dpp", {"weight": 0.0}),
    ("cdpruner", {"weight": 0.25}),
    ("dart", {"pivots": 3}),
    ("random", {"seed": 3}),
]
SCENE = "models/demo-scenes/images/00000"
TOKENS: list[Spec] = [
    *(
        {"checkpoint": checkpoint, **asked, "keep": keep}
        for checkpoint in ("models/qwen2-vl-tiny", "models/llava-onevision-tiny", "models/vila1.5-tiny")
        for asked in (
            {"image": {"file": f"{SCENE}2.png"}, "question": "What digit is on the purple diamond?"},
            {"image": {"file": f"{SCENE}5.png"}, "question": "Is the yellow circle left of the star?"},
            {"clip": [{"file": f"{SCENE}4.png"}] * 4, "question": "What colour is the circle?"},
        )
        for keep in (1.0, 0.5)
    ),
    *(
        {"checkpoint": "tests/tiny_llava.py", "image": image(200, 100), "question": "What is this?", "keep": keep}
        for keep in (1.0, 0.5)
    ),
]
