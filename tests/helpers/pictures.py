"""What every picture must satisfy."""

from matplotlib.backends.backend_agg import FigureCanvasAgg

EDGE = 1.0
"""By how many pixels something may reach beyond the figure."""


def assert_inside(figure):
    """Assert that all that is drawn lies inside the figure after layout."""
    FigureCanvasAgg(figure).draw()
    width, height = figure.bbox.size
    boxes = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
    boxes += [one.get_window_extent() for one in (*figure.legends, *figure.texts)]
    for box in boxes:
        assert box.x0 > -EDGE
        assert box.y0 > -EDGE
        assert box.x1 < width + EDGE
        assert box.y1 < height + EDGE
