"""Writes the dashboards into the package. Grafana's SDK is needed here, and by nobody who uses what it made.

python -m tools.dashboards
"""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import LegendDisplayMode, LegendPlacement, StackingMode
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableRefresh,
)

from tools.dashboards.overview import OVERVIEW
from tools.dashboards.panels import Board, Panel
from tools.dashboards.service import SERVICE

BOARDS = (OVERVIEW, SERVICE)
FOLDER = Path(__file__).parents[2] / "src" / "tidings" / "observe" / "grafana"
SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
HEIGHT = 8
VARIABLES = {
    "service": ("Service", "label_values(tidings_live, service)"),
    "handler": ("Handler", 'label_values(tidings_lanes_busy{service="$service"}, handler)'),
}


def json_of(board: Board) -> str:
    """The board as Grafana reads it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.uid)
        .description(board.says)
        .tags(["tidings"])
        .refresh("30s")
        .time("now-1h", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(
            dashboard.DashboardLink("Tidings")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["tidings"])
            .as_dropdown(False)
            .keep_time(True)
            .include_vars(True)
        )
        .with_variable(dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
    )
    for name in board.variables:
        made = made.with_variable(_variable(name, single=name == "service" and "handler" in board.variables))
    ids = count(1)
    for row in board.rows:
        made = made.with_row(dashboard.Row(row.title).id(next(ids)))
        for panel in row.panels:
            made = made.with_panel(_panel(panel).id(next(ids)))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _variable(name: str, *, single: bool) -> dashboard.QueryVariable:
    label, query = VARIABLES[name]
    made = (
        dashboard.QueryVariable(name)
        .label(label)
        .datasource(SOURCE)
        .query(query)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    )
    return made if single else made.multi(True).include_all(True).all_value(".*")


def _panel(panel: Panel) -> stat.Panel | timeseries.Panel:
    made: stat.Panel | timeseries.Panel
    if panel.kind == "figure":
        made = stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    else:
        legend = common.VizLegendOptions().display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        made = timeseries.Panel().fill_opacity(10).min(0).legend(legend.show_legend(True))
        if panel.kind == "stacked":
            made = made.stacking(common.StackingConfig().mode(StackingMode.NORMAL))
    made = made.title(panel.title).description(panel.says).unit(panel.unit).datasource(SOURCE)
    made = made.span(panel.width).height(HEIGHT)
    for number, (expression, name) in enumerate(panel.queries):
        query = prometheus.Dataquery().expr(expression).legend_format(name).ref_id(chr(ord("A") + number))
        made = made.with_target(query.datasource(SOURCE))
    return made


def main() -> int:
    for board in BOARDS:
        path = FOLDER / f"{board.uid}.json"
        text = json_of(board)
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
            print(f"written: {path.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
