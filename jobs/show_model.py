"""The command `show-model`."""

import click

from jobs.command import Command


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
    _show_findings(info)


def _show_findings(info) -> None:
    metrics = info.metrics
    click.echo(f"\nMeasured on {metrics['split']}: {metrics['images']} images,")
    click.echo(f"mean AUC over the 14 findings {_auc(metrics['mean_auc'])}\n")
    click.echo(f"{'finding':<20} {'AUC':>6} {'threshold':>10} {'recall':>7} {'95% interval':>15}")
    for name, value in info.thresholds["none"].items():
        interval = f"{value.recall_low:.2f} to {value.recall_high:.2f}"
        click.echo(
            f"{name:<20} {_auc(metrics['findings'][name]['auc']):>6} {value.threshold:>10.3f}"
            f" {value.recall:>7.2f} {interval:>15}"
        )
    click.echo("\nThresholds and their recall are from the validation part, --tta none.")


def _auc(value: float | None) -> str:
    """Returns three digits; `-` where a finding had no positive or no negative image."""
    return "-" if value is None else f"{value:.3f}"
