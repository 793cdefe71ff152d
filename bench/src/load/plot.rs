//! A report as a picture: latency by quantile, and throughput over time, as SVG.

use std::ops::Range;
use std::path::Path;

use plotters::coord::Shift;
use plotters::prelude::*;

use super::Report;

/// Width and height, in pixels.
const SIZE: (u32, u32) = (960, 840);

const TITLE_PIXELS: i32 = 20;
const LABEL_PIXELS: i32 = 14;

const THROUGHPUT: RGBColor = RGBColor(0, 128, 80);

/// Fine lines between two marks of the axes of throughput.
const FINE_LINES: usize = 2;

/// More decades of quantiles than a day of load fills.
const MAX_TASKS: f64 = 1e12;

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Why there is no picture.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PlotError {
    /// The file cannot be written.
    #[error("the picture cannot be written to {path}: {source}")]
    Write {
        /// Which file.
        path: String,
        /// What went wrong.
        source: std::io::Error,
    },
    /// It cannot be drawn.
    #[error("the picture cannot be drawn: {0}")]
    Draw(String),
    /// There is nothing to draw.
    #[error("no task was answered, so there is nothing to draw")]
    Empty,
}

impl Report {
    /// Draws latency by quantile and throughput over time into an SVG file.
    ///
    /// # Errors
    /// Nothing was answered, or the file cannot be written.
    pub fn plot(&self, path: &Path) -> Result<(), PlotError> {
        let svg = self.svg()?;
        let wrong = |source| PlotError::Write { path: path.display().to_string(), source };
        std::fs::write(path, svg).map_err(wrong)
    }

    /// The picture itself, as SVG.
    ///
    /// # Errors
    /// Nothing was answered.
    pub fn svg(&self) -> Result<String, PlotError> {
        if self.latency.is_empty() {
            return Err(PlotError::Empty);
        }
        let mut svg = String::new();
        draw(self, &mut svg).map_err(|error| PlotError::Draw(error.to_string()))?;
        Ok(svg)
    }
}

fn draw(report: &Report, svg: &mut String) -> Drawn {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(SIZE.1 / 2);
    latency(report, &above)?;
    throughput(report, &below)?;
    root.present()?;
    Ok(())
}

/// Latency by quantile: each label on the axis is ten times rarer than the one before.
fn latency(report: &Report, panel: &Panel<'_>) -> Drawn {
    let rarest = (report.tasks as f64).clamp(10.0, MAX_TASKS);
    let points = report.latency.iter().map(|point| {
        // The last quantile is 1: one task of all.
        ((1.0 / (1.0 - point.quantile).max(1.0 / rarest)).clamp(1.0, rarest), point.us.max(0.1))
    });
    let points: Vec<(f64, f64)> = points.collect();
    let us = around(points.iter().map(|(_, us)| *us));
    let title = match report.rate {
        None => format!("{}: latency by quantile, from handing in to answer", report.action),
        Some(_) => format!("{}: latency by quantile, from when a task was due", report.action),
    };
    let mut chart = ChartBuilder::on(panel)
        .caption(title, ("sans-serif", TITLE_PIXELS))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d((1.0..rarest).log_scale(), us.log_scale())?;
    chart
        .configure_mesh()
        .label_style(("sans-serif", LABEL_PIXELS))
        .x_desc("of the tasks took no longer")
        .y_desc("microseconds")
        .x_label_formatter(&|rarity| percent(*rarity))
        .y_label_formatter(&|us| short(*us))
        .draw()?;
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)))?;
    Ok(())
}

fn throughput(report: &Report, panel: &Panel<'_>) -> Drawn {
    let points: Vec<(f64, f64)> =
        report.throughput.iter().map(|point| (point.seconds, point.tasks_per_second)).collect();
    let highest = points.iter().map(|(_, tasks)| *tasks).fold(1.0, f64::max);
    let end = points.iter().map(|(seconds, _)| *seconds).fold(report.seconds, f64::max).max(0.001);
    let mut chart = ChartBuilder::on(panel)
        .caption(format!("{}: throughput over time", report.action), ("sans-serif", TITLE_PIXELS))
        .margin(12)
        .x_label_area_size(44)
        .y_label_area_size(84)
        .build_cartesian_2d(0.0..end, 0.0..highest * 1.1)?;
    chart
        .configure_mesh()
        .max_light_lines(FINE_LINES)
        .label_style(("sans-serif", LABEL_PIXELS))
        .x_desc("seconds")
        .y_desc("tasks a second")
        .y_label_formatter(&|tasks| short(*tasks))
        .draw()?;
    chart.draw_series(LineSeries::new(points, THROUGHPUT.stroke_width(2)))?;
    Ok(())
}

/// A range that holds all values, with some room.
fn around(values: impl Iterator<Item = f64>) -> Range<f64> {
    let (low, high) = values.fold((f64::MAX, 0.1_f64), |(low, high), us| (low.min(us), high.max(us)));
    low.min(high) / 1.5..high * 1.5
}

/// How many of all tasks are not among the rarest, as people write it.
fn percent(rarity: f64) -> String {
    let decades = rarity.log10().max(0.0);
    let digits = (decades.ceil() as usize).saturating_sub(2);
    format!("{:.digits$}%", 100.0 * (1.0 - 1.0 / rarity))
}

/// A number as short as it can be read.
fn short(number: f64) -> String {
    let (value, unit) = match number {
        n if n >= 1e6 => (n / 1e6, "M"),
        n if n >= 1e3 => (n / 1e3, "k"),
        n => (n, ""),
    };
    let digits = usize::from(value.fract().abs() > 0.05 && value < 100.0);
    format!("{value:.digits$}{unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_written_with_the_digits_they_need() {
        let written: Vec<String> =
            [1.0, 2.0, 10.0, 100.0, 1_000.0, 10_000.0].into_iter().map(percent).collect();
        assert_eq!(written, ["0%", "50%", "90%", "99%", "99.9%", "99.99%"]);
    }

    #[test]
    fn numbers_on_an_axis_are_short() {
        let written: Vec<String> = [0.5, 7.0, 250.0, 1_500.0, 20_000.0, 3e6].into_iter().map(short).collect();
        assert_eq!(written, ["0.5", "7", "250", "1.5k", "20k", "3M"]);
    }
}
