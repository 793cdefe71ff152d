//! The line that tells what happens while load runs, on standard error where that is a terminal.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use indicatif::{HumanCount, ProgressBar, ProgressStyle};
use reparto_client::Client;

use super::Run;
use super::record::Recorder;

/// How often the line is drawn anew.
const REDRAW: Duration = Duration::from_millis(250);

/// How often it is looked whether the run is over.
const LOOK: Duration = Duration::from_millis(20);

/// Draws the line until nobody drives any more. Returns at once where there is no terminal.
pub(super) fn show(run: &Run<'_>, clients: &[Client], driving: impl Fn() -> bool) {
    let duration = run.options.duration;
    let bar = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    if bar.is_hidden() {
        return;
    }
    let style = ProgressStyle::with_template("{elapsed} [{bar:20}] {msg}");
    let bar = match style {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar, // The library's own look serves as well.
    };
    let (mut seen, mut seen_at) = (0, Instant::now());
    while driving() {
        let now = Instant::now();
        if now.duration_since(seen_at) >= REDRAW {
            let all = sum(run);
            let rate = (all.done - seen) as f64 / now.duration_since(seen_at).as_secs_f64();
            (seen, seen_at) = (all.done, now);
            bar.set_position(u64::try_from(run.began.elapsed().as_millis()).unwrap_or(u64::MAX));
            bar.set_message(message(&all, rate, clients));
        }
        std::thread::sleep(LOOK);
    }
    bar.finish_and_clear();
}

fn message(all: &Recorder, rate: f64, clients: &[Client]) -> String {
    let us = |quantile| HumanCount(all.latency.value_at_quantile(quantile) / 1_000);
    let in_flight: usize = clients.iter().map(Client::in_flight).sum();
    let failed = match all.failed {
        0 => String::new(),
        failed => format!(", {} failed", HumanCount(failed)),
    };
    format!(
        "{} tasks{failed}, {}/s now, p50 {} us, p99 {} us, {} in flight",
        HumanCount(all.done),
        HumanCount(rate as u64),
        us(0.5),
        us(0.99),
        HumanCount(in_flight as u64),
    )
}

fn sum(run: &Run<'_>) -> Recorder {
    let mut all = Recorder::new(run.options);
    for recorder in &run.recorders {
        all.add(&recorder.lock().unwrap_or_else(PoisonError::into_inner));
    }
    all
}
