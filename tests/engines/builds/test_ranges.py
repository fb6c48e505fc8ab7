"""Shape profiles: ranges that follow from one another, what is refused, and the command that a refusal names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import msgspec
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from foveate.engines import BundleError, GraphSpec, OptionError, RequestError, TensorSpec
from foveate.engines.builds.ranges import (
    GraphProfile,
    Range,
    ShapeProfile,
    VisionShape,
    check_profiles,
    choose,
    graph_profiles,
    refusal,
    tensor_shapes,
)

# Qwen2-VL-2B's
HIDDEN_SIZE, LAYERS, KV_HEADS, HEAD_DIM, VOCAB_SIZE, PATCH_VALUES = 1536, 28, 2, 128, 151936, 1176
COMMAND = ["foveate", "build", "x.bundle", "--backend", "tensorrt-rtx"]
BUILD = "Run: foveate build x.bundle --backend tensorrt-rtx"

Run = tuple[str, dict[str, int]]
"""A graph's name and the values of its symbols."""


def tensors(**shapes: str) -> tuple[TensorSpec, ...]:
    """Names and their dimensions, as `batch sequence 32`."""
    dims = {name: tuple(int(dim) if dim.isdigit() else dim for dim in text.split()) for name, text in shapes.items()}
    return tuple(TensorSpec(name, "float32", shape) for name, shape in dims.items())


def spec(name: str, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...] = ()) -> GraphSpec:
    return GraphSpec(name, f"graphs/{name}.onnx", inputs, outputs)


def cache(prefix: str) -> tuple[TensorSpec, ...]:
    names = [f"{prefix}.{layer}.{part}" for layer in range(LAYERS) for part in ("key", "value")]
    return tensors(**dict.fromkeys(names, f"batch {KV_HEADS} kv_capacity {HEAD_DIM}"))


VISUAL_EMBEDS = tensors(visual_embeds=f"visual_tokens {HIDDEN_SIZE}")
INPUTS_EMBEDS = tensors(inputs_embeds=f"batch sequence {HIDDEN_SIZE}")
VISION = spec(
    "vision_standard", tensors(pixel_values=f"frames patches {PATCH_VALUES}", patch_positions="patches 2"), VISUAL_EMBEDS
)
SCORE = spec(
    "score",
    tensors(inputs_embeds=f"total_tokens {HIDDEN_SIZE}", position_ids="3 total_tokens", visual_indices="visual_tokens")
    + tensors(instruction_indices="instruction_tokens", neighbour_indices="visual_tokens 9"),
    tensors(scores="visual_tokens", attention="visual_tokens"),
)
EMBED = spec(
    "embed",
    tensors(input_ids="batch sequence", keep_indices="kept_tokens", placeholder_indices="kept_tokens") + VISUAL_EMBEDS,
    INPUTS_EMBEDS,
)
DECODER = spec(
    "decoder_standard",
    INPUTS_EMBEDS
    + tensors(position_ids="3 batch sequence", last_indices="batch", write_indices="batch", cache_indices="cache_tokens")
    + cache("past_key_values"),
    tensors(logits=f"batch {VOCAB_SIZE}") + cache("present"),
)
SPECS = {graph.name: graph for graph in (VISION, SCORE, EMBED, DECODER)}
"""The graphs as `docs/bundle.md` has them."""


def merged_by_four(visual_tokens: int) -> VisionShape:
    return VisionShape(1, 4 * visual_tokens, visual_tokens)


@st.composite
def ranges(draw: st.DrawFn, start: int = 1, end: int = 5000) -> Range:
    return Range(*sorted(draw(st.tuples(*[st.integers(start, end)] * 3))))


@st.composite
def shape_profiles(draw: st.DrawFn) -> ShapeProfile:
    visual, merge, frames = draw(ranges()), draw(st.sampled_from([1, 4, 9])), draw(ranges(end=3))
    patches = Range(draw(st.integers(1, visual.min * merge)), visual.opt * merge, visual.max * merge + draw(st.integers(0, 9)))
    new_tokens = draw(st.integers(1, 500))
    others = tuple((name, draw(ranges())) for name in draw(st.sampled_from([(), ("windows",)])))
    return ShapeProfile(visual, patches, draw(ranges(end=999)), new_tokens, draw(ranges(end=8)), frames, others)


def by_name(graph: str, shapes: ShapeProfile) -> dict[str, Mapping[str, Range]]:
    return {profile.name: profile.ranges for profile in graph_profiles(SPECS[graph], shapes)}


@given(ranges(start=0))
def test_a_range_and_its_text(sizes: Range) -> None:
    assert Range.parse(str(sizes)) == sizes
    assert str(Range.parse(f"{sizes.min}:{sizes.opt}:{sizes.max}")) == str(sizes)
    assert msgspec.json.decode(msgspec.json.encode(sizes), type=Range) == sizes


def test_one_number_is_that_value_alone() -> None:
    assert Range.parse("512") == Range(512, 512, 512)
    assert str(Range.parse("512")) == "512"
    assert str(Range.parse("64:512:4096")) == "64:512:4096"


@pytest.mark.parametrize("text", ["", "64:512", "1:2:3:4", "a", "1:b:3", "-1:2:3", "1.5", " 5", "1_0", "٣", "9" * 5000])
def test_texts_that_are_no_range(text: str) -> None:
    with pytest.raises(OptionError, match=r"is not a range, expected MIN:OPT:MAX or one number\. Write it like 64:512:4096\."):
        Range.parse(text)


@pytest.mark.parametrize("sizes", [(3, 2, 4), (1, 5, 4), (-1, 1, 1), (1, 1, 2**31), (1, 2.0, 3), (True, 1, 1), ("1", 2, 3)])
def test_ranges_that_contradict_themselves(sizes: Any) -> None:
    with pytest.raises(OptionError, match=r"expected whole numbers MIN:OPT:MAX .* Put them in order"):
        Range(*sizes)
    with pytest.raises(OptionError, match="range 9:2:3"):
        msgspec.json.decode(b"[9,2,3]", type=Range)


@given(shape_profiles())
def test_a_profile_and_its_json(shapes: ShapeProfile) -> None:
    assert msgspec.json.decode(msgspec.json.encode(shapes), type=ShapeProfile) == shapes
    assert hash(shapes) == hash(msgspec.convert(msgspec.to_builtins(shapes), ShapeProfile))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"visual_tokens": Range(0, 8, 16)},
            "visual_tokens is 0:8:16, expected a range that starts at 1 or above.",
        ),
        ({"batch": Range(0, 1, 1)}, "batch is 0:1:1"),
        ({"frames": Range(0, 0, 0)}, "frames is 0"),
        ({"new_tokens": 0}, "new_tokens is 0, expected a whole number from 1"),
        ({"new_tokens": "256"}, "new_tokens is '256', expected a whole number"),
    ],
)
def test_profiles_that_contradict_themselves(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as caught:
        ShapeProfile(**{"visual_tokens": Range(8, 8, 16), "patches": Range(1, 32, 64), **fields})
    assert message in str(caught.value)


def test_frames_add_up_to_visual_tokens() -> None:
    assert ShapeProfile(Range(8, 8, 16), Range(8, 8, 8), frames=Range(1, 1, 2)).frames.max == 2


@given(shape_profiles())
def test_ranges_of_the_graphs_follow_from_each_other(shapes: ShapeProfile) -> None:
    visual, text = shapes.visual_tokens, shapes.text_tokens
    (score,) = by_name("score", shapes).values()
    decoder, embed = by_name("decoder_standard", shapes), by_name("embed", shapes)
    for bound in ("opt", "max"):
        assert getattr(score["total_tokens"], bound) == getattr(visual, bound) + getattr(text, bound)
    assert (score["visual_tokens"].min, score["total_tokens"].min) == (1, 1 + text.min)  # of a part, and of a small picture
    assert score["instruction_tokens"].max == text.max
    prefill, decode = decoder["prefill"], decoder["decode"]
    assert prefill["sequence"] == shapes.prompt_tokens
    assert prefill["cache_tokens"] == Range(shapes.prompt_tokens.min, shapes.prompt_tokens.opt, shapes.kv_capacity)
    assert decode["sequence"] == embed["step"]["sequence"] == Range(1, 1, 1)
    assert decode["kv_capacity"] == prefill["kv_capacity"] == Range(*[shapes.kv_capacity] * 3)
    assert shapes.kv_capacity == decode["cache_tokens"].max
    assert shapes.kv_capacity % 64 == 0
    assert 0 <= shapes.kv_capacity - (visual.max + text.max + shapes.new_tokens) < 64
    assert embed["prompt"]["sequence"].max == prefill["sequence"].max
    assert embed["prompt"]["visual_tokens"] == embed["prompt"]["kept_tokens"]
    assert embed["prompt"]["visual_tokens"].max == shapes.batch.max * visual.max
    assert embed["step"]["visual_tokens"] == embed["step"]["kept_tokens"] == Range(0, 0, 0)


def prompt_runs(visual: int, kept: int, text: int, new: int, batch: int, image: dict[str, int]) -> list[Run]:
    """What the graphs are fed, one after the other, for a batch of equal prompts."""
    scored = {"total_tokens": visual + text, "visual_tokens": visual, "instruction_tokens": text}
    prompt = text + kept
    return [
        *([("vision_standard", image), ("score", scored)] if visual else []),
        ("embed", {"batch": 1, "sequence": text, "visual_tokens": 0, "kept_tokens": 0}),
        ("embed", {"batch": batch, "sequence": prompt, "visual_tokens": batch * visual, "kept_tokens": batch * kept}),
        ("decoder_standard", {"batch": batch, "sequence": prompt, "cache_tokens": prompt}),
        ("embed", {"batch": batch, "sequence": 1, "visual_tokens": 0, "kept_tokens": 0}),
        ("decoder_standard", {"batch": batch, "sequence": 1, "cache_tokens": prompt + new}),
    ]


def within(sizes: Range) -> st.SearchStrategy[int]:
    return st.integers(sizes.min, sizes.max)


@given(st.data())
def test_any_prompt_within_the_ranges_is_served(data: st.DataObject) -> None:
    shapes = data.draw(shape_profiles())
    visual = data.draw(st.just(0) | within(shapes.visual_tokens))
    kept = data.draw(st.integers(0, visual))
    text, batch = data.draw(within(shapes.text_tokens)), data.draw(within(shapes.batch))
    image = {"frames": data.draw(within(shapes.frames)), "patches": data.draw(within(shapes.patches))}
    for graph, symbols in prompt_runs(visual, kept, text, shapes.new_tokens, batch, image):
        fixed = {"kv_capacity": shapes.kv_capacity} if graph == "decoder_standard" else {}
        profiles = graph_profiles(SPECS[graph], shapes)
        chosen = choose(profiles, {**symbols, **fixed})
        assert chosen is not None, (graph, symbols)
        if symbols.get("sequence") == 1 and not symbols.get("visual_tokens") and symbols["batch"] in shapes.batch:
            assert profiles[chosen].name in ("step", "decode")
        assert choose(graph_profiles(SPECS[graph], shapes, single=True), {**symbols, **fixed}) == 0


@given(st.data())
def test_any_part_of_an_image_is_served(data: st.DataObject) -> None:
    """And any small picture: down to one visual token, wherever the range of whole images begins."""
    shapes = ShapeProfile.from_visual_tokens(data.draw(ranges(end=999)), merged_by_four)
    part, text = data.draw(st.integers(1, shapes.visual_tokens.max)), data.draw(within(shapes.text_tokens))
    vision = {"frames": 1, "patches": 4 * part, "visual_tokens": part}
    scored = {"total_tokens": part + text, "visual_tokens": part, "instruction_tokens": text}
    for graph, symbols in (("vision_standard", vision), ("score", scored)):
        assert choose(graph_profiles(SPECS[graph], shapes), symbols) is not None, (graph, symbols)


def test_a_single_profile_is_tuned_for_prompts() -> None:
    shapes = ShapeProfile.from_visual_tokens(Range(1, 512, 1024), merged_by_four)
    for spec in SPECS.values():
        (joined,), (*_, longest) = graph_profiles(spec, shapes, single=True), graph_profiles(spec, shapes)
        assert {name: sizes.opt for name, sizes in joined.ranges.items()} == {n: s.opt for n, s in longest.ranges.items()}


def test_several_images_may_need_more_visual_tokens_than_one_run_of_vision_gives() -> None:
    shapes = ShapeProfile(Range(16, 64, 512), Range(64, 64, 64))
    assert graph_profiles(SPECS["vision_standard"], shapes)[0].ranges["patches"] == Range(64, 64, 64)


@given(shape_profiles(), st.data())
def test_a_prompt_behind_what_a_slot_holds(shapes: ShapeProfile, data: st.DataObject) -> None:
    """Chunks, second turns, and whatever else goes on with a filled cache."""
    sequence = data.draw(within(shapes.prompt_tokens))
    held = data.draw(st.integers(0, shapes.kv_capacity - sequence))
    profiles = graph_profiles(SPECS["decoder_standard"], shapes)
    assert choose(profiles, {"batch": shapes.batch.opt, "sequence": sequence, "cache_tokens": held + sequence}) is not None


@st.composite
def misfits(draw: st.DrawFn, shapes: ShapeProfile) -> tuple[str, str, dict[str, int]]:
    """A graph, a symbol of it, and values of which that symbol's is outside its range in every profile."""
    graph = draw(st.sampled_from(sorted(SPECS)))
    profile = graph_profiles(SPECS[graph], shapes)[draw(st.integers(0, 1)) if graph == "decoder_standard" else -1]
    symbols = {symbol: draw(within(sizes)) for symbol, sizes in profile.ranges.items() if symbol != "kv_capacity"}
    # What a prompt has too much of, it has in its cache as well; in a step it is the cache that may be too small.
    outer = draw(st.sampled_from(sorted(symbols.keys() - {"sequence" if profile.name == "decode" else "cache_tokens"})))
    limits = profile.ranges[outer]
    above, below = st.integers(limits.max + 1, 3 * limits.max + 2), st.integers(1, max(1, limits.min - 1))
    symbols[outer] = draw(above | below if limits.min > 1 else above)
    # Each image has a visual token and text around it; a prompt of one token is a step.
    assume(symbols.get("total_tokens", 2) > 1 and (profile.name != "prefill" or symbols["sequence"] > 1))
    if profile.name == "prefill":
        symbols["cache_tokens"] = symbols["sequence"]
    return graph, outer, symbols


@given(st.data())
def test_a_value_outside_is_refused_by_name_and_served_after_widening(data: st.DataObject) -> None:
    shapes = data.draw(shape_profiles())
    graph, outer, symbols = data.draw(misfits(shapes))
    profiles = graph_profiles(SPECS[graph], shapes)
    assert choose(profiles, symbols) is None
    fact, _, rest = str(refusal(graph, profiles, symbols, shapes, COMMAND)).partition(" (")
    assert f" {symbols[outer]} " in f"{fact} "
    assert rest.startswith(f"'{outer}' of graph '{graph}'), the engine takes ")
    over_batch = graph == "embed" and outer.endswith("_tokens")
    widened = shapes.widened(outer, -(-symbols[outer] // shapes.batch.max) if over_batch else symbols[outer])
    assert choose(graph_profiles(SPECS[graph], widened), symbols) is not None
    assert rest.endswith(f" {BUILD} {' '.join(widened.to_flags())}")


@given(shape_profiles(), st.integers(1, 9999), st.sampled_from(["visual_tokens", "text_tokens", "batch", "new_tokens"]))
def test_widening_only_adds(shapes: ShapeProfile, value: int, symbol: str) -> None:
    widened = shapes.widened(symbol, value)
    for graph in SPECS.values():
        for old, new in zip(graph_profiles(graph, shapes), graph_profiles(graph, widened), strict=True):
            for name in old.ranges.keys() - {"kv_capacity"}:
                assert new.ranges[name].min <= old.ranges[name].min
                assert new.ranges[name].max >= old.ranges[name].max
    field = getattr(widened, symbol)
    assert value <= field if symbol == "new_tokens" else value in field


def test_the_flags_are_those_of_the_build_command() -> None:
    shapes = ShapeProfile.from_visual_tokens(Range(64, 512, 4096), merged_by_four, batch=Range(1, 2, 4), new_tokens=99)
    flags = "--visual-tokens 64:512:4096 --text-tokens 1:64:1024 --new-tokens 99 --batch 1:2:4"
    assert shapes.to_flags() == flags.split()


@given(ranges(), st.integers(1, 20_000))
def test_rebuilding_with_the_named_visual_tokens_serves_the_image(visual: Range, tokens: int) -> None:
    """The command line knows no patches: those that follow from the widened visual tokens must do."""
    shapes = ShapeProfile.from_visual_tokens(visual, merged_by_four)
    assert (shapes.frames, shapes.patches) == (Range(1, 1, 1), Range(4, 4 * visual.opt, 4 * visual.max))
    widened = shapes.widened("patches", 4 * tokens)
    assert widened.visual_tokens.max == max(visual.max, tokens)
    assert 4 * tokens in ShapeProfile.from_visual_tokens(widened.visual_tokens, merged_by_four).patches


@pytest.mark.parametrize(
    ("graph", "symbols", "options", "fact", "flags"),
    [
        (
            VISION,
            {"frames": 1, "patches": 5184},
            {},
            "the image needs 5184 patches ('patches' of graph 'vision_standard'), the engine takes 4 to 4096",
            "--visual-tokens 1:256:1296 --text-tokens 1:64:1024 --new-tokens 256 --batch 1",
        ),
        (  # the text needs no more room: the visual tokens alone make the prompt too long
            SCORE,
            {"total_tokens": 2296, "visual_tokens": 1296, "instruction_tokens": 990},
            {},
            "the request needs 1296 visual tokens ('visual_tokens' of graph 'score'), the engine takes 1 to 1024",
            "--visual-tokens 1:256:1296 --text-tokens 1:64:1024 --new-tokens 256 --batch 1",
        ),
        (  # everything that is too small grows; visual tokens are those of three prompts
            EMBED,
            {"batch": 3, "sequence": 3500, "visual_tokens": 6000, "kept_tokens": 0},
            {"batch": Range(1, 1, 2)},
            "the batch has 3 requests ('batch' of graph 'embed'), the engine takes 1 to 2",
            "--visual-tokens 1:256:2000 --text-tokens 1:64:1500 --new-tokens 256 --batch 1:1:3",
        ),
        (
            DECODER,
            {"batch": 1, "sequence": 2100, "cache_tokens": 2100},
            {},
            "the prompt has 2100 tokens ('sequence' of graph 'decoder_standard'), the engine takes 1 to 2048",
            "--visual-tokens 1:256:1024 --text-tokens 1:64:1076 --new-tokens 256 --batch 1",
        ),
        (  # too short for the prefill, but no step of the answer either
            DECODER,
            {"batch": 1, "sequence": 3, "cache_tokens": 3},
            {"text_tokens": Range(64, 64, 1024)},
            "the prompt has 3 tokens ('sequence' of graph 'decoder_standard'), the engine takes 64 to 2048",
            "--visual-tokens 1:256:1024 --text-tokens 3:64:1024 --new-tokens 256 --batch 1",
        ),
        (
            DECODER,
            {"batch": 1, "sequence": 1, "cache_tokens": 3000},
            {},
            "prompt and answer need 3000 tokens of KV cache ('cache_tokens' of graph 'decoder_standard'), "
            "the engine takes 1 to 2304",
            "--visual-tokens 1:256:1024 --text-tokens 1:64:1024 --new-tokens 952 --batch 1",
        ),
        (
            DECODER,
            {"batch": 2, "sequence": 1, "cache_tokens": 7},
            {},
            "the batch has 2 requests ('batch' of graph 'decoder_standard'), the engine takes 1",
            "--visual-tokens 1:256:1024 --text-tokens 1:64:1024 --new-tokens 256 --batch 1:1:2",
        ),
    ],
    ids=["image", "visual tokens", "batch of images", "prompt", "short prompt", "answer", "batch"],
)
def test_what_is_refused(graph: GraphSpec, symbols: dict[str, int], options: dict[str, Any], fact: str, flags: str) -> None:
    shapes = ShapeProfile.from_visual_tokens(Range(1, 256, 1024), merged_by_four, **options)
    profiles = graph_profiles(graph, shapes)
    assert choose(profiles, symbols) is None
    error = refusal(graph.name, profiles, symbols, shapes, COMMAND)
    assert isinstance(error, RequestError)
    assert str(error) == f"{fact}. {BUILD} {flags}"


def test_what_no_engine_can_take() -> None:
    shapes = ShapeProfile.from_visual_tokens(Range(1, 256, 1024), merged_by_four)
    profiles = graph_profiles(DECODER, shapes)
    with pytest.raises(OptionError, match="'kv_capacity' has no range of its own, it follows from others"):
        refusal("decoder_standard", profiles, {"kv_capacity": 64}, shapes, COMMAND)
    with pytest.raises(BundleError, match="profile 'decode' has no symbol 'colour', it has batch, "):
        choose(profiles, {"colour": 1})
    with pytest.raises(OptionError, match="patches is 0:1024:4096, expected a range that starts at 1"):
        shapes.widened("patches", 0)


def test_graphs_and_dimensions_without_a_profile() -> None:
    shapes = ShapeProfile.from_visual_tokens(Range(1, 256, 1024), merged_by_four)
    with pytest.raises(
        OptionError, match="graph 'decoder' has no shape profile, engines are built of vision_standard, score, "
    ):
        graph_profiles(spec("decoder", ()), shapes)
    with pytest.raises(BundleError, match=r"profile 'vision' has no symbol 'rows', it has frames, patches, visual_tokens\."):
        graph_profiles(spec("vision_standard", tensors(pixel_values="rows 3")), shapes)


def test_symbols_of_one_family_alone() -> None:
    """Its processor says how large they get; what is refused leads to the visual tokens."""
    windows = spec("vision_standard", tensors(pixel_values="frames patches 8", window_sizes="windows"), VISUAL_EMBEDS)

    def shape(visual_tokens: int) -> VisionShape:
        return merged_by_four(visual_tokens)._replace(others={"windows": -(-visual_tokens // 16)})

    shapes = ShapeProfile.from_visual_tokens(Range(64, 256, 1024), shape)
    profiles = graph_profiles(windows, shapes)
    assert profiles[0].ranges["windows"] == Range(1, 16, 64)
    request = {"frames": 1, "patches": 4096, "visual_tokens": 1024, "windows": 96}
    assert choose(profiles, {**request, "windows": 64}) == 0
    error = str(refusal(windows.name, profiles, request, shapes, COMMAND))
    fact = "the image needs 96 windows ('windows' of graph 'vision_standard'), the engine takes 1 to 64"
    assert error.startswith(f"{fact}. {BUILD} --visual-tokens 64:256:1536 ")
    assert shapes.widened("windows", 96).widened("visual_tokens", 2048).others == (("windows", Range(1, 16, 128)),)
    # Twice the patches and three times the windows are three times the image, not six times.
    both = str(refusal(windows.name, profiles, {**request, "patches": 8192, "windows": 192}, shapes, COMMAND))
    assert f" {BUILD} --visual-tokens 64:256:3072 " in both
    weights = spec("vision_standard", tensors(weights="windows 4"))
    large = ShapeProfile(Range(1, 1, 1), Range(1, 1, 1), others=(("windows", Range(1, 1, 2**30)),))
    with pytest.raises(OptionError, match="Lower the max of 'windows': use a smaller visual_tokens"):
        check_profiles(weights, graph_profiles(weights, large))


def test_shapes_of_a_tensor() -> None:
    profile = GraphProfile("p", {"batch": Range(1, 2, 4), "sequence": Range(0, 8, 16)})
    embeds, total = tensors(inputs_embeds="batch sequence 32", total="")
    assert tensor_shapes(embeds, profile) == ((1, 0, 32), (2, 8, 32), (4, 16, 32))
    assert tensor_shapes(total, profile) == ((), (), ())


@pytest.mark.parametrize("batch", [1, 8])
def test_nothing_limits_a_prompt_below_16384_visual_tokens(batch: int) -> None:
    shapes = ShapeProfile.from_visual_tokens(Range(1, 1024, 16_384), merged_by_four, batch=Range(1, 1, batch))
    for graph in SPECS.values():
        check_profiles(graph, graph_profiles(graph, shapes))


@pytest.mark.parametrize(
    ("graph", "options", "tensor", "symbol", "flags"),
    [
        (VISION, {"visual_tokens": Range(1, 1, 456_523)}, "pixel_values[1, 1826092, 1176]", "patches", "visual_tokens"),
        (DECODER, {"batch": Range(1, 1, 20_000)}, "past_key_values.0.key[20000, 2, 1344, 128]", "batch", "batch"),
        (
            DECODER,
            {"new_tokens": 2**23},
            "past_key_values.0.key[1, 2, 8389696, 128]",
            "kv_capacity",
            "visual_tokens or text_tokens or new_tokens",
        ),
    ],
    ids=["vision", "batch", "answer"],
)
def test_tensors_that_are_too_large(graph: GraphSpec, options: dict[str, Any], tensor: str, symbol: str, flags: str) -> None:
    shapes = ShapeProfile.from_visual_tokens(**{"visual_tokens": Range(1, 64, 64), **options}, shape_of_tokens=merged_by_four)
    with pytest.raises(OptionError) as caught:
        check_profiles(graph, graph_profiles(graph, shapes))
    name, _, shape = tensor.partition("[")
    assert str(caught.value).startswith(f"graph '{graph.name}' in profile '")
    assert str(caught.value).endswith(
        f"tensor '{name}' grows to [{shape}, expected at most 2147483647 elements. "
        f"Lower the max of '{symbol}': use a smaller {flags}."
    )


@pytest.mark.parametrize(("shape", "patches", "fits"), [("patches", 2**31 - 1, True), ("frames patches", 2**30, False)])
def test_the_largest_tensor_that_fits(shape: str, patches: int, fits: bool) -> None:
    profile = GraphProfile("vision", {"frames": Range(1, 1, 2), "patches": Range(1, 1, patches)})
    with nullcontext() if fits else pytest.raises(OptionError, match=r"grows to \[2, 1073741824\]"):
        check_profiles(spec("vision", tensors(pixel_values=shape)), [profile])
