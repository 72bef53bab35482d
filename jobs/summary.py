"""What `score` says at its end."""

from pipeline.run import HandedOver
from pipeline.runner import Handover
from schemas.quality import Gate


def summarise(record: dict, output: str) -> str:
    """Returns a few lines on a committed run, for a person.

    Args:
      record: The run record.
      output: The place of all runs, as the user gave it.
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
    if "dicom_objects" in counts:
        lines.append(f"  DICOM: {_dicom(counts)}.")
    if counts.get("with_quality_code"):
        lines.append(f"  Quality: {_quality(record)}.")
    if drift := record.get("drift"):
        lines.append(f"  Drift against {drift['against']}: {_drift(drift)}.")
    if measured := record.get("measured"):
        lines.append(f"  Measured: {_measured(measured)}.")
    lines.append(
        f"  Time: {timings['score']:.1f} s to score ({rate:.1f} images/s),"
        f" {timings['start']:.1f} s to start, {timings['draw']:.1f} s to draw,"
        f" {timings['write']:.1f} s to write. Runner {record['runner']},"
        f" {record['precision']}."
    )
    run, folder = record["run_id"], output.rstrip("/")
    lines += [
        f"  Scores:   {folder}/scores/run_id={run}",
        f"  Worklist: {folder}/worklist/run_id={run}.csv",
        f"  Overlays: {folder}/gradcam/run_id={run}",
        *([f"  Report:   {folder}/report/run_id={run}.html"] if "report" in timings else []),
        f"  Record:   {folder}/runs/{run}.json",
        f"Model {record['model_id']}: {record['model_title']}. {record['model_statement']}",
    ]
    return "\n".join(lines)


def next_step(left: HandedOver, output: str) -> str:
    """Returns what was done of a run that is not published, and the command that goes on.

    Args:
      left: The run.
      output: The folder of all runs, as the user gave it.
    """
    commit = f"prescreen commit {output} {left.run_id}"
    match left.by:
        case Handover.DRY_RUN:
            return (
                f"Run {left.run_id}: its job was built, and not submitted. To submit it, give the"
                f" same command with --resume --run-id {left.run_id} and without --dry_run."
            )
        case Handover.TEMPLATE:
            return (
                f"Run {left.run_id}: its template is written, and nothing is scored yet. Start a"
                f" job from it, once; when that has ended, publish with: {commit}"
            )
        case Handover.SUBMITTED:
            return (
                f"Run {left.run_id}: its job is submitted. When that has ended, publish with:"
                f" {commit}"
            )


def _dicom(counts: dict) -> str:
    text = f"{counts['dicom_objects']} objects of {counts['dicom_images']} images in --dicom-out"
    reasons = (f"{reason} {images}" for reason, images in counts["dicom_not_written"].items())
    listed = ", ".join(reasons)
    return f"{text}; no objects of: {listed}" if listed else text


def _drift(drift: dict) -> str:
    if not drift["compared"]:
        return f"not compared, {drift['obstacle']}"
    alarms = [f"{alarm['name']} ({alarm['statistic']})" for alarm in drift["alarms"]]
    return ", ".join(alarms) or "none beyond normal variation"


def _measured(measured: dict) -> str:
    """Returns what scores were against the labels that the manifest carried."""
    areas = {
        "any abnormality": measured["abnormality_auc"],
        "mean of the 14 findings": measured["mean_auc"],
    }
    shown = [f"AUC {area:.3f} ({name})" for name, area in areas.items() if area is not None]
    return f"{', '.join(shown) or 'too little to say'}, on {measured['images']} labelled images"


def _quality(record: dict) -> str:
    counts = record["counts"]
    codes = ", ".join(f"{code} {images}" for code, images in counts["quality"].items())
    text = f"{counts['with_quality_code']} images carry a quality code: {codes}"
    if counts["gated"] and record["options"].get("gate") == Gate.FLAG:
        text += f"; {counts['gated']} of them rank behind all others"
    return text


def _flagged(record: dict) -> str:
    rate = record["flag_rate"]
    text = str(record["counts"]["flagged"])
    if rate["actual"] is not None:
        text += f", {rate['actual']:.0%} of the scored"
    if rate["expected"] is not None:
        text += f" ({rate['expected']:.0%} where the thresholds were measured)"
    return text
