"""The command `show-model`."""

import typing

import click

from jobs.command import Command

if typing.TYPE_CHECKING:
    from model.bundle import BundleInfo


@click.command("show-model", cls=Command)
@click.argument("bundle", required=False, type=click.Path(file_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print all of bundle.json.")
@click.option("--card", is_flag=True, help="Print the model card, as Markdown.")
def show_model_command(bundle: str | None, as_json: bool, card: bool):
    """Shows what BUNDLE is, what it may be used for, and what was measured.

    Without BUNDLE, the one that `score` uses when none is named.
    """
    if as_json and card:
        raise click.UsageError("--json and --card cannot be printed at once. Give one of them.")
    import json

    from model.bundle import demo_bundle_path, load_bundle_info
    from model.card import model_card

    info = load_bundle_info(bundle or demo_bundle_path())
    if as_json:
        click.echo(json.dumps(info.to_json(), indent=2))
        return
    if card:
        click.echo(model_card(info), nl=False)
        return
    click.echo(f"{info.title}\n{info.statement}\n")
    click.echo(f"model id        {info.model_id}")
    click.echo(f"input           {info.input_contract.name}")
    click.echo(f"trained in      {info.training_precision}")
    click.echo(f"thresholds for  --tta {', '.join(info.thresholds)}")
    if reference := info.feature_reference:
        click.echo(
            f"distance        far above {reference.far_above:.1f}, from {reference.images} images"
            f" of the {reference.measured_on}"
        )
    _show_findings(info)


def _show_findings(info: "BundleInfo") -> None:
    metrics = info.metrics
    if metrics["images"]:
        click.echo(f"\nMeasured on {metrics['split']}: {metrics['images']} images,")
        click.echo(f"mean AUC over the 14 findings {_number(metrics['mean_auc'])}\n")
    else:
        click.echo("\nNot measured on any images.\n")
    mode, thresholds = next(iter(info.thresholds.items()))
    click.echo(f"{'finding':<20} {'AUC':>6} {'threshold':>10} {'recall':>7} {'95% interval':>15}")
    for name, value in thresholds.items():
        interval = "-"
        if value.recall is not None:
            interval = f"{value.recall_low:.2f} to {value.recall_high:.2f}"
        click.echo(
            f"{name:<20} {_number(metrics['findings'][name]['auc']):>6} {value.threshold:>10.3f}"
            f" {_number(value.recall, 2):>7} {interval:>15}"
        )
    origin = info.provenance.get("thresholds_origin", "their recall is of the validation part")
    click.echo(f"\nThresholds are for --tta {mode}; {origin}.")


def _number(value: float | None, digits: int = 3) -> str:
    """Returns a number, or `-` where nothing was measured or could be."""
    return "-" if value is None else f"{value:.{digits}f}"
