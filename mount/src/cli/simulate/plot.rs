//! The picture of a simulation: efficiency against interval, a line for each rhythm of flushes with its
//! confidence as bars, the model dashed beside it, and the best interval of the model as a vertical line.

use super::Cell;
use anyhow::anyhow;
use plotters::prelude::*;
use plotters::style::full_palette::GREY;
use scrfs::interval::{Schedule, duration_words};

const WIDTH: u32 = 900;
const HEIGHT: u32 = 560;
/// Colours that people tell apart who do not tell red from green (Okabe and Ito).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

/// Lowest and highest of some numbers, with a margin.
fn span(values: impl Iterator<Item = f64>, margin: f64) -> (f64, f64) {
    let (low, high) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
        (low.min(value), high.max(value))
    });
    let room = ((high - low) * margin).max(1e-6);
    (low - room, high + room)
}

/// The picture, as SVG. Intervals are on a scale of ratios.
pub(super) fn svg(cells: &[Cell], best: Schedule) -> anyhow::Result<String> {
    let mut picture = String::new();
    draw(&mut picture, cells, best).map_err(|error| anyhow!("cannot draw: {error}"))?;
    Ok(picture)
}

fn draw(
    picture: &mut String,
    cells: &[Cell],
    best: Schedule,
) -> Result<(), Box<dyn std::error::Error>> {
    let log = |cell: &Cell| cell.schedule.interval_seconds.log2();
    let across = span(cells.iter().map(log), 0.05);
    let ends = cells.iter().flat_map(|cell| {
        let Cell {
            efficiency, model, ..
        } = cell;
        let (mean, half) = (efficiency.mean, efficiency.half_width);
        [mean - half, mean + half, *model].map(|share| 100.0 * share)
    });
    let up = span(ends, 0.05);
    let area = SVGBackend::with_string(picture, (WIDTH, HEIGHT)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(16)
        .x_label_area_size(48)
        .y_label_area_size(64)
        .build_cartesian_2d(across.0..across.1, up.0..up.1)?;
    chart
        .configure_mesh()
        .x_desc("computing between checkpoints")
        .y_desc("efficiency, %")
        .x_label_formatter(&|log| duration_words(log.exp2()))
        .y_label_formatter(&|percent| format!("{percent:.1}"))
        .light_line_style(TRANSPARENT)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 16))
        .draw()?;
    let at = best.interval_seconds.log2();
    if (across.0..across.1).contains(&at) {
        chart.draw_series(DashedLineSeries::new(
            [(at, up.0), (at, up.1)],
            2,
            4,
            GREY.into(),
        ))?;
    }
    for (number, line) in cells
        .chunk_by(|one, next| one.schedule.flush_every == next.schedule.flush_every)
        .enumerate()
    {
        let colour = COLOURS[number % COLOURS.len()];
        let every = line.first().map_or(1, |cell| cell.schedule.flush_every);
        let points = line
            .iter()
            .map(|cell| (log(cell), 100.0 * cell.efficiency.mean));
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
            .label(format!("one flush in {every}"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 24, y)], colour.stroke_width(2)));
        let model = line.iter().map(|cell| (log(cell), 100.0 * cell.model));
        chart.draw_series(DashedLineSeries::new(model, 6, 4, colour.stroke_width(1)))?;
        chart.draw_series(line.iter().map(|cell| {
            let (mean, half) = (
                100.0 * cell.efficiency.mean,
                100.0 * cell.efficiency.half_width,
            );
            PathElement::new(
                [(log(cell), mean - half), (log(cell), mean + half)],
                colour.stroke_width(2),
            )
        }))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerMiddle)
        .label_font(("sans-serif", 14))
        .background_style(WHITE.mix(0.8))
        .border_style(GREY)
        .draw()?;
    area.present()?;
    Ok(())
}
