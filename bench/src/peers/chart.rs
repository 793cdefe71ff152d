//! The chart: tasks a second of every server in every closed loop, on a logarithmic scale.

use std::path::Path;

use plotters::prelude::*;

use super::{PeersError, Report, Server};

const WIDTH: u32 = 960;
const HEIGHT: u32 = 480;

/// Part of a group's width that its bars take.
const BARS_WIDTH: f64 = 0.8;

fn colour(server: Server) -> RGBColor {
    match server {
        Server::Reparto => RGBColor(0x1b, 0x6f, 0xb5),
        Server::RepartoGearman => RGBColor(0x7f, 0xb3, 0xdb),
        Server::Nats => RGBColor(0x6a, 0xa8, 0x4f),
        Server::Gearmand => RGBColor(0xe0, 0x8a, 0x2c),
        Server::Relay => RGBColor(0x99, 0x99, 0x99),
    }
}

/// Draws it into a file, as SVG.
pub(super) fn write(report: &Report, path: &Path) -> Result<(), PeersError> {
    let mut svg = String::new();
    draw(report, &mut svg)?;
    std::fs::write(path, svg).map_err(PeersError::file(path, "writing"))
}

fn draw(report: &Report, svg: &mut String) -> Result<(), PeersError> {
    let failed = |error: &dyn std::fmt::Display| PeersError::Chart(error.to_string());
    let speed = |group: usize, server| {
        report.closed[group].best(server)?.medians().map(|it| it.tasks_per_second).filter(|it| *it > 0.0)
    };
    let groups = report.closed.len();
    let speeds = (0..groups).flat_map(|group| Server::ALL.map(|server| speed(group, server)));
    let (least, most) =
        speeds.flatten().fold((f64::INFINITY, 0.0_f64), |(least, most), it| (least.min(it), most.max(it)));
    if most == 0.0 {
        return Err(PeersError::Chart("there are no figures".into()));
    }
    let floor = 10f64.powf(least.log10().floor());
    let root = SVGBackend::with_string(svg, (WIDTH, HEIGHT)).into_drawing_area();
    root.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&root)
        .caption("Tasks a second (logarithmic), median of the rounds", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(36)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..groups as f64, (floor..most * 2.0).log_scale())
        .map_err(|error| failed(&error))?;
    let label = |at: &f64| {
        let group = at.floor();
        let closed = report.closed.get(group as usize).filter(|_| (at - group - 0.5).abs() < 0.01);
        closed.map(|it| it.scenario.to_string()).unwrap_or_default()
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        // Labels stand at multiples of a half, and only the middle of each group has one.
        .x_labels(2 * groups + 1)
        .x_label_formatter(&label)
        .y_label_formatter(&|speed| indicatif::HumanCount(*speed as u64).to_string())
        .label_style(("sans-serif", 12))
        .draw()
        .map_err(|error| failed(&error))?;
    let width = BARS_WIDTH / Server::ALL.len() as f64;
    for (place, server) in Server::ALL.into_iter().enumerate() {
        let bars = (0..groups).filter_map(|group| {
            let left = group as f64 + (1.0 - BARS_WIDTH) / 2.0 + place as f64 * width;
            Some(Rectangle::new(
                [(left, floor), (left + width * 0.95, speed(group, server)?)],
                colour(server).filled(),
            ))
        });
        chart
            .draw_series(bars)
            .map_err(|error| failed(&error))?
            .label(server.name())
            .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 12, y + 5)], colour(server).filled()));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.8))
        .label_font(("sans-serif", 13))
        .draw()
        .map_err(|error| failed(&error))?;
    root.present().map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::report;
    use super::*;

    #[test]
    fn the_chart_names_every_server_and_scenario_it_has() {
        let mut svg = String::new();
        draw(&report(), &mut svg).unwrap();
        for wanted in ["<svg", "reparto", "gearmand", "4 x 128, 64 bytes"] {
            assert!(svg.contains(wanted), "{wanted} is not in {svg}");
        }
    }

    #[test]
    fn without_figures_there_is_no_chart_but_a_reason() {
        let nothing = Report { closed: Vec::new(), ..report() };
        assert!(
            draw(&nothing, &mut String::new()).is_err_and(|error| error.to_string().contains("no figures"))
        );
    }
}
