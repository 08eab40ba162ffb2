"""The report of a run: `report.json` for programs and `report.html` for people.

The page is one file that needs nothing else: style, charts, pictures and a few lines of
script stand in it, and its content policy forbids every connection and every other
script. So it can be mailed, printed and opened inside a hospital. Every text of the
record is escaped; a site that is called `<script>` is shown as just that.
"""

import base64
import hashlib
from functools import cache
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import ValidationError

from common.durable import write_whole
from common.errors import RunError
from server import report_format as words
from server import report_view as view
from server.record import RunRecord
from server.report_arms import arm_of, mean_of, value_at
from server.report_counts import (
    show_told,
    sites_in_tens,
    steps_of,
    steps_of_reply,
)
from server.report_figures import figures_of
from server.report_plan import takes_last
from server.report_privacy import privacy_of
from server.report_verdict import SAME, verdict_of

JSON_NAME = "report.json"
HTML_NAME = "report.html"


def render_html(record: RunRecord) -> str:
    """The report as one self-contained page."""
    script = _own_file("report.js")
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            record=record,
            federated=arm_of(record, "federated"),
            verdict=verdict_of(record),
            tiles=view.tiles_of(record),
            gains=view.gain_rows(record),
            figures=figures_of(record),
            privacy=privacy_of(record),
            same=SAME,
            in_tens=sites_in_tens(record),
            compared=view.compares(record),
            # The files are our own; nothing of the record is in them.
            css=Markup(_own_file("report.css")),
            script=Markup(script),
            script_hash=base64.b64encode(
                hashlib.sha256(script.encode()).digest()
            ).decode(),
        )
    )


def write_report(record: RunRecord, run_folder: Path) -> None:
    """Write `report.json` and `report.html`, each as a whole or not at all.

    Raises:
        RunError: The folder can't be written to.
    """
    page = render_html(record)
    try:
        text = record.model_dump_json(indent=2) + "\n"
        write_whole(run_folder / JSON_NAME, text.encode())
        write_whole(run_folder / HTML_NAME, page.encode())
    except OSError as error:
        raise RunError(
            f"report could not be written to {run_folder}: {error.strerror}, expected "
            "a folder that can be written to; check space and rights"
        ) from error


def read_record(run_folder: Path) -> RunRecord:
    """The record that `write_report` left in a run folder.

    Raises:
        RunError: There is none, or it is not one of this version.
    """
    path = run_folder / JSON_NAME
    try:
        return RunRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise RunError(
            f"report found no readable {path} ({error.strerror}), expected the folder "
            "of a finished run; finish it with --resume"
        ) from error
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise RunError(
            f"report read a damaged or foreign {path}: {where}: {first['msg']}, "
            "expected what this version of fedct wrote; run it again with --resume"
        ) from error


def _own_file(name: str) -> str:
    return (resources.files("server") / "templates" / name).read_text("utf-8")


@cache
def _environment() -> Environment:
    """Templates that escape everything and refuse unknown names."""
    environment = Environment(
        loader=PackageLoader("server"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        show=words.show,
        difference=words.show_difference,
        count=words.show_count,
        told=show_told,
        share=words.show_share,
        size=words.show_bytes,
        duration=words.show_seconds,
        metric=words.metric_label,
        arm=words.arm_label,
        plural=words.plural,
    )
    environment.tests["local"] = lambda name: name.startswith("local-")
    environment.globals.update(
        view=view,
        value_at=value_at,
        mean_of=mean_of,
        steps_of=steps_of,
        steps_of_reply=steps_of_reply,
        takes_last=takes_last,
    )
    return environment
