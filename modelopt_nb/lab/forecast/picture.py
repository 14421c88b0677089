"""Plot which models fit into which memory."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from modelopt_nb.lab.forecast.forecast import afford
from modelopt_nb.lab.plots.style import PLAIN, single_axes, type_style


def plot_afford(table: pd.DataFrame | None = None) -> Figure:
    """Plot the table of :func:`modelopt_nb.afford`: a cell in the scheme's colour, pale if it takes more than that."""
    table = afford() if table is None else table
    figure, ax = single_axes(1.8 + 1.6 * table.shape[1], 0.8 + 0.28 * len(table))
    for y, row in enumerate(table.itertuples(index=False)):
        for x, cell in enumerate(row):
            scheme, _, more = str(cell).partition(", ")
            colour = "#bbbbbb" if scheme == "no" else type_style(scheme.split()[0])[0]
            ax.add_patch(Rectangle((x - 0.48, y - 0.44), 0.96, 0.88, color=colour, alpha=0.2 if more else 0.55))
            ax.text(x, y, str(cell), ha="center", va="center", fontsize=8, **PLAIN)
    ax.set(xlim=(-0.5, table.shape[1] - 0.5), ylim=(len(table) - 0.5, -0.5))
    ax.set_xticks(range(table.shape[1]), table.columns)
    ax.set_yticks(range(len(table)), table.index)
    ax.tick_params(length=0, labelsize=8, labeltop=True, labelbottom=False)
    ax.spines[:].set_visible(False)
    return figure
