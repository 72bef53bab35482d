"""What `score` says at its end."""

from pathlib import Path


def summarise(record: dict, output: str) -> str:
    """Returns a few lines on a committed run, for a person.

    Args:
      record: The run record.
      output: The folder of all runs, as the user gave it.
    """
    counts, timings = record["counts"], record["timings_s"]
    images = counts["scored"] + counts["rejected"] - counts["kept"]
    rate = images / timings["score"]
    lines = [
        f"Run {record['run_id']}: {counts['manifest']} images in the manifest,"
        f" {counts['scored']} scored, {counts['rejected']} rejected"
        + (f", {counts['skipped']} skipped." if counts["skipped"] else "."),
    ]
    if counts["kept"]:
        lines.append(f"  From earlier attempts: {counts['kept']} images.")
    if counts["rejected"]:
        reasons = (f"{name} {count}" for name, count in record["rejected_by_reason"].items())
        lines.append(f"  Rejected: {', '.join(reasons)}.")
    lines.append(f"  Flagged: {_flagged(record)}; {counts['listed']} on the worklist.")
    lines.append(
        f"  Drawn: {counts['overlays']} overlays of {counts['drawn']} images"
        " (attention, not localisation)."
    )
    lines.append(
        f"  Time: {timings['score']:.1f} s to score ({rate:.1f} images/s),"
        f" {timings['start']:.1f} s to start, {timings['draw']:.1f} s to draw,"
        f" {timings['write']:.1f} s to write. Runner {record['runner']},"
        f" {record['precision']}."
    )
    run, folder = record["run_id"], Path(output)
    lines += [
        f"  Scores:   {folder / 'scores' / f'run_id={run}'}",
        f"  Worklist: {folder / 'worklist' / f'run_id={run}.csv'}",
        f"  Overlays: {folder / 'gradcam' / f'run_id={run}'}",
        f"  Record:   {folder / 'runs' / f'{run}.json'}",
        f"Model {record['model_id']}: {record['model_title']}. {record['model_statement']}",
    ]
    return "\n".join(lines)


def _flagged(record: dict) -> str:
    rate = record["flag_rate"]
    text = str(record["counts"]["flagged"])
    if rate["actual"] is not None:
        text += f", {rate['actual']:.0%} of the scored"
    if rate["expected"] is not None:
        text += f" ({rate['expected']:.0%} where the thresholds were measured)"
    return text
