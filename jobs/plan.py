"""The command `plan`: what a run would do, and what it would take."""

import functools
import json
import time

import click

from jobs.command import Command
from jobs.logs import load_tensorflow
from jobs.plan_summary import summarise_plan
from jobs.score_options import check_score_options, make_score_options, score_options


@click.command("plan", cls=Command, context_settings={"show_default": True})
@score_options
@click.option(
    "--deadline-hours",
    type=click.FloatRange(0, min_open=True),
    metavar="H",
    show_default="none",
    help="Tell how many machines like this one are done in so many hours.",
)
@click.option(
    "--prices",
    "prices_file",
    metavar="FILE",
    show_default="none",
    help="Prices of machines as fast as this one, as TOML: tells what the run costs, and a million"
    " images.",
)
@click.option("--json", "as_json", is_flag=True, help="Print all that is known, as JSON.")
@click.pass_context
def plan_command(
    context: click.Context,
    deadline_hours: float | None,
    prices_file: str | None,
    as_json: bool,
    log_json: bool,
    quiet: bool,
    **options,
):
    """Measures a small sample of a manifest, and prints what `score` would do with it.

    The options are those of `score`, so that one word changes a run into its plan. Nothing is
    written, but for a folder of scratch that is removed. --quiet keeps back what it is at;
    --log-json makes JSON of that, and of an error.
    """
    check_score_options(options["retry_rejects"], options["retry_reasons"])
    begin = time.monotonic()
    load_tensorflow(as_json=log_json)
    from jobs.progress import shown

    made = make_score_options(**options)
    load_s = time.monotonic() - begin
    from pipeline.forecast import forecast_run
    from pipeline.prices import load_prices
    from pipeline.reckoning import PlanOptions

    prices = load_prices(prices_file) if prices_file else []
    plan_options = PlanOptions(made, deadline_hours, prices, load_s)
    with shown(context, log_json=log_json, quiet=quiet) as display:
        plan = forecast_run(
            plan_options,
            functools.partial(load_tensorflow, as_json=log_json),
            lambda step: display("planning", step=step),
        )
    click.echo(json.dumps(plan, indent=2) if as_json else summarise_plan(plan))
