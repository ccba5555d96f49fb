"""The arms of a study: what its file may say of one, and the curriculum that this makes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

from kdutils import projections
from kdutils.curriculum import Curriculum, Stage, paired_blocks
from kdutils.lab.lab import Lab
from kdutils.lab.record import Run
from kdutils.probes import mediation
from kdutils.signals import Hidden, Labels, Output, Regressed, WeightedSum
from kdutils.studies import sound

HOW = ("temperature", "positions", "normalise", "units", "sparse", "projection")
KINDS = {  # of an arm's curriculum: the options it takes, and those that are lists, tuned
    "labels": (("labelled",), ("told",)),
    "one-shot": (("temperature",), ("told", "heat")),
    "annealed": ((), ("share", "steps")),
    "taid": ((), ("share", "steps")),
    "progressive": (("temperature",), ("share", "steps", "gain")),
    "extraction": ((*HOW, "layers", "hidden", "keep"), ("share", "steps", "heat")),
    "joint": (HOW, ("weight", "heat")),
    "fitnets": (("temperature", "positions", "units"), ("share", "steps", "heat")),
}
VALUES = {"layers": ("each", "reversed", "last", "at once"), "keep": ("all", *mediation.KEPT),
          "positions": ("all", "asked", "tokens"), "normalise": ("sample", "position"),
          "hidden": ("trained", "untrained", "support", "wrong samples"),
          "projection": ("gaussian", "rademacher", "orthonormal", "pca", "neurons")}  # fmt: skip
REACH = {"share": (0.0, 0.8), "steps": (1.0, math.inf), "gain": (0.0, 0.95), "weight": (0.0, math.inf),
         "told": (0.01, 1.0), "heat": (1.0, 16.0)}  # fmt: skip  # of what is given, and of extensions
OF_LABS = {"labelled": ("pictures",), "told": ("parity",), "keep": ("parity",)}  # options that not every lab knows
OF_RECORDS = {"curriculum", "evaluate_every", "share", "layers", "hidden"}  # those of a recorded teacher's arms
WHOLE = ("evaluate_every", "sparse", "units")  # counts, and a dimension after the samples
RIVALS = (("heat", "temperature"), ("sparse", "projection"))
ZERO = ("gain", "told")  # may be given as 0
UNTRAINED = 5000  # added to a teacher's seed: the seed of its untrained control


def label(choice: Mapping[str, float]) -> str:
    return ", ".join(f"{key} {value:g}" for key, value in choice.items())


def parts(label: str) -> frozenset[str]:
    """What a label says, in whatever order."""
    return frozenset(label.split(", "))


def wrong_with(arm: Mapping[str, Any], lab: str) -> str:
    """What is wrong with an arm's options in a lab, or nothing."""
    kind, recorded = arm.get("curriculum"), lab == "recorded"
    kinds = ("labels", "one-shot", "extraction") if recorded else tuple(KINDS)
    if kind not in kinds:
        return f"needs a curriculum, one of {', '.join(kinds)}"
    plain, lists = KINDS[kind]
    if wrong := set(arm) - {"curriculum", "evaluate_every", *plain, *lists}:
        return f"has no option {min(wrong)!r}; {kind} has {', '.join(plain + lists)}"
    if wrong := [key for key in arm if lab not in OF_LABS.get(key, (lab,)) or (recorded and key not in OF_RECORDS)]:
        return f"has {wrong[0]!r}, of which the lab {lab!r} knows nothing"
    hidden = VALUES["hidden"][:2] if recorded else [v for v in VALUES["hidden"] if v != "support" or lab == "parity"]
    if arm.get("hidden", hidden[0]) not in hidden:
        return f"has hidden {arm['hidden']!r}; in the lab {lab!r} choose one of {', '.join(hidden)}"
    if wrong := [key for key in lists if key in arm and not (isinstance(arm[key], list) and arm[key])]:
        return f"needs a list to choose from as {wrong[0]!r}"
    if wrong := [key for key in lists if key in arm and not sound.several(arm[key], partial(_fits, key))]:
        (low, high), whole = REACH[wrong[0]], "whole " if wrong[0] == "steps" else ""
        least = "0 or more" if wrong[0] in ZERO else f"{low:g} or more" if low else "above 0"
        most = f", up to {high:g}" if high < math.inf else ""
        return f"needs different {whole}numbers, {least}{most}, as {wrong[0]!r}, not {arm[wrong[0]]!r}"
    alone = {**dict.fromkeys(WHOLE, sound.count), **dict.fromkeys(("temperature", "labelled"), sound.above_zero)}
    if wrong := [key for key, fits in alone.items() if key in arm and not fits(arm[key])]:
        whole = "whole " if wrong[0] in WHOLE else ""
        return f"needs a {whole}number above 0 as {wrong[0]!r}, not {arm[wrong[0]]!r}"
    if wrong := [pair for pair in RIVALS if set(pair) <= set(arm)]:
        return f"has both {wrong[0][0]!r} and {wrong[0][1]!r}, of which one alone would be used"
    if "share" in lists and ("share" in arm) == ("steps" in arm):
        return "needs either 'share' or 'steps' for its early stages"
    if missing := {"gain", "weight"} & set(lists) - set(arm):
        return f"needs a list {min(missing)!r}"
    wrong = [key for key, values in VALUES.items() if arm.get(key, values[0]) not in values]
    return f"has {wrong[0]} {arm[wrong[0]]!r}; choose one of {', '.join(VALUES[wrong[0]])}" if wrong else ""


def _fits(key: str, value: Any) -> bool:
    """Whether one value of a list that is tuned can be meant."""
    low, high = REACH[key]
    low, zero = (0.0, True) if key in ZERO else (low, False)
    return sound.number(value, low, whole=key == "steps") and value <= high and (value > 0 or zero)


def plan(lab: Lab, teacher: Run, options: Mapping[str, Any], choice: Mapping[str, float], seed: int) -> Curriculum:
    """The curriculum of an arm: `options` from the study's file, `choice` one value for each list that is tuned.

    "progressive" passes the checkpoint with that `gain` of the teacher's accuracy over its start. "extraction" takes
    `layers` "each" in turn, "reversed", the "last", or all "at once", of the teacher or of an untrained one. `hidden`,
    `keep` and `told` are controls: see `kdutils.probes.mediation`.
    """
    s, network, kind = lab.settings, teacher.network(), options["curriculum"]
    last = Stage(Output(network, *([choice["heat"]] * 2 if "heat" in choice else [options.get("temperature", 1.0)])))
    pairs = paired_blocks(s.layers, s.layers) if hasattr(s, "layers") else [("act", "act")]
    how = {key: options[key] for key in ("positions", "normalise", "units") if key in options}
    if "sparse" in options:
        how["projection"] = partial(projections.sparse, s=options["sparse"])
    elif "projection" in options:
        how["projection"] = getattr(projections, options["projection"])
    early, length = [], int(choice["steps"]) if "steps" in choice else round(choice.get("share", 0) * s.steps)
    if kind == "labels":
        last = Stage(Labels())
    elif kind == "joint":
        last = Stage(WeightedSum(((1.0, last.signal), (choice["weight"], Hidden(network, *pairs[-1], **how)))))
    elif kind == "fitnets":
        early = [Regressed(network, *pairs[-1], **how)]
    elif kind == "annealed":
        early = [Output(network, heat, heat) for heat in (8.0, 4.0, 2.0)]
    elif kind == "taid":
        early = [Output(network, share=share) for share in (0.25, 0.5, 0.75)]
    elif kind == "progressive":
        low, high = teacher.accuracy[0, 0], teacher.accuracy[-1, 0]
        step = lab.checkpoint_near(teacher, float(low + choice["gain"] * (high - low)))
        early = [Output(teacher.network(step=step), name=f"checkpoint at step {step}")]
    elif kind == "extraction":
        layers, hidden = options.get("layers", "each"), options.get("hidden", "trained")
        source, name = network, "final teacher"
        if hidden in ("untrained", "support"):
            source, name = lab.untrained_teacher(seed + UNTRAINED), "an untrained network"
            source = mediation.told(source, lab.task.support) if hidden == "support" else source
        pairs = {"last": pairs[-1:], "reversed": pairs[::-1]}.get(layers, pairs)
        early = [Hidden(source, *pair, name=name, **how) for pair in pairs]
        if hidden == "wrong samples":
            early = [mediation.Shuffled(signal) for signal in early]
        if layers == "at once":
            early = [WeightedSum(tuple((1.0, signal) for signal in early))]
    if "told" in choice:
        last = Stage(mediation.Told(last.signal, lab.task.support, choice["told"]))
    elif options.get("keep", "all") != "all":
        last = Stage(mediation.Redrawn(last.signal, options["keep"]))
    stages = (Stage(signal, max(1, round(length / len(early)))) for signal in early)
    return Curriculum(label(choice) or kind, (*stages, last))
