"""What `plan` says, for a person."""

_KINDS = {
    "scores": "scores",
    "rejects": "rejects",
    "skipped": "skipped",
    "gradcam": "overlays",
    "worklist": "worklist",
    "report": "report",
}
"""Kinds of result, and what they are called here."""

_STEPS = {
    "start": "to start",
    "score": "to score",
    "draw": "to draw",
    "write": "to write",
    "report": "to report",
}


def summarise_plan(plan: dict) -> str:
    """Returns the lines that tell a plan, as `pipeline.forecast.forecast_run` gives it."""
    lines = [
        f"First, the interrupted commit of run {run} is finished." for run in plan["finishes_first"]
    ]
    if plan["published_already"]:
        lines.append(f"Run {plan['published_already']} is published already: nothing is left.")
        return "\n".join(lines)
    lines += _work(plan)
    if not plan["sample"]:
        lines.append("Nothing is to be scored, so nothing was measured.")
        return "\n".join(lines)
    lines += [*_sample(plan), *_time(plan), *_disk(plan["disk_bytes"]), *_cost(plan)]
    if plan["leaves_out"]:
        lines.append(f"Not in this plan: {', '.join(plan['leaves_out'])}.")
    return "\n".join(lines)


def _work(plan: dict) -> list[str]:
    images = plan["images"]
    parts = {
        "new": images["new"],
        "stale": images["stale"],
        "scored before and scored again, without --only-new": images["again"],
    }
    listed = ", ".join(f"{count} {name}" for name, count in parts.items() if count)
    lines = [
        f"Manifest: {images['manifest']} images, {images['to_score']} to score"
        + (f": {listed}." if listed else ".")
    ]
    if images["stale"]:
        lines.append(
            f"  Stale: {images['changed']} whose file has changed, {images['other_settings']} of"
            " another model or other settings."
        )
    if images["skipped"]:
        lines.append(f"  Skipped: {images['skipped']}, which published runs hold.")
    if plan["resumes"]:
        lines.append(
            f"  Kept: {images['kept']} of run {plan['resumes']}, which is unfinished and gone on"
            " with."
        )
    if plan["held_by"]:
        lines.append(f"  It is being worked on now ({plan['held_by']}): a start would be refused.")
    return lines


def _sample(plan: dict) -> list[str]:
    sample, expected = plan["sample"], plan["expected"]
    reasons = ", ".join(f"{name} {count}" for name, count in sample["rejected_by_reason"].items())
    low, high = expected["rejected_share_95"]
    lines = [
        f"Sample: {sample['images']} images from all over these;"
        f" {sum(sample['rejected_by_reason'].values())} rejected"
        + (f" ({reasons})" if reasons else "")
        + f", so expect {expected['rejected_share']:.1%} of all ({low:.1%} to {high:.1%})."
    ]
    if expected["rejected_share"] > expected["reject_limit"]:
        lines.append(
            f"  That is more than --reject-limit {expected['reject_limit']} allows: the run would"
            " end with exit code 3."
        )
    return lines


def _time(plan: dict) -> list[str]:
    rates, seconds, expected = plan["rates"], plan["seconds"], plan["expected"]
    sample = plan["sample"]
    steps = ", ".join(
        f"{_duration(seconds[step])} {name}" for step, name in _STEPS.items() if seconds[step]
    )
    lines = [
        f"Rates: decode {rates['decode']:.1f} images/s, network {rates['inference']:.1f},"
        f" the whole job {rates['score']:.1f}. The bottleneck is"
        f" {'the network' if rates['bottleneck'] == 'inference' else 'decoding'}.",
        f"Time: {plan['hours']:.2f} h on this machine ({_duration(seconds['all'])}): {steps}.",
        f"  Drawn: {expected['overlays']} overlays of {expected['drawn']} images; expect"
        f" {expected['flagged']} flagged.",
    ]
    if plan["runner"] != sample["runner"]:
        lines.append(
            f"  All of it was measured here, on {sample['runner']}: what the workers of"
            f" {plan['runner']} do is not known."
        )
    if plan["deadline_hours"] is not None:
        machines = "1 machine" if plan["machines"] == 1 else f"{plan['machines']} machines"
        lines.append(f"  Within {plan['deadline_hours']:g} h: {machines} like this one.")
    return lines


def _disk(disk: dict) -> list[str]:
    kinds = ", ".join(f"{name} {_size(disk[kind])}" for kind, name in _KINDS.items() if disk[kind])
    return [
        f"Disk: {_size(disk['published'])} ({kinds}), and {_size(disk['staged'])} more until it is"
        " published."
    ]


def _cost(plan: dict) -> list[str]:
    if not plan["prices"]:
        return []
    return [
        "Cost, of machines as fast as this one:",
        *(
            f"  {price['name']}: {price['cost']:.2f} {price['currency']} for this run,"
            f" {price['cost_per_million']:.2f} for a million images, at"
            f" {price['price_per_hour']:g} an hour on {price['date']} ({price['source']})."
            for price in plan["prices"]
        ),
    ]


def _duration(seconds: float) -> str:
    if seconds < 600:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 36_000 else f"{seconds / 3600:.1f} h"


def _size(size_bytes: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes / 1000:.0f} KB"
