//! What a decision of the scheduler costs: choosing among many workers, submitting to a long queue.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use reparto_balancer::scheduler::Policy;

use super::report::{ChoiceRow, SubmitRow};
use super::{SchedulerRig, Sizes};

/// Events that are timed together, since the clock costs about as much as one.
const BATCH: u32 = 500;

/// Batches in a row that are timed of one scheduler before it is another's turn. Each takes some hundred kilobytes of the
/// processor's caches with its tasks, and a balancer has one scheduler: so for most of its turn each has them for
/// itself, in which 10,000 workers of weights 1 to 3 are all chosen five times.
const BATCHES_A_TURN: usize = 101;

const POLICIES: [(Policy, &str); 3] = [
    (Policy::RoundRobin, "round_robin"),
    (Policy::LeastLoaded, "least_loaded"),
    (Policy::Weighted, "weighted"),
];

/// Times a task's submission and assignment, and its whole way, among more and more workers. All sizes take
/// turns, so that what disturbs the machine disturbs them alike.
pub(super) fn choices(sizes: &Sizes, stop: &AtomicBool) -> Vec<ChoiceRow> {
    let mut rows = Vec::new();
    for (policy, name) in POLICIES {
        // Threads for a whole batch, so that every task is assigned at once.
        let mut rigs: Vec<_> =
            sizes.choices.iter().map(|workers| SchedulerRig::new(policy, *workers, BATCH)).collect();
        let mut submits = vec![Vec::new(); rigs.len()];
        let mut steps = vec![Vec::new(); rigs.len()];
        for _ in 0..sizes.batches.div_ceil(BATCHES_A_TURN) {
            if stop.load(Ordering::Relaxed) {
                return rows;
            }
            for (place, rig) in rigs.iter_mut().enumerate() {
                time_turn(rig, &mut submits[place], &mut steps[place]);
            }
        }
        for (place, workers) in sizes.choices.iter().enumerate() {
            rows.push(ChoiceRow {
                policy: name,
                workers: *workers,
                submit_ns: median(&mut submits[place]),
                step_ns: median(&mut steps[place]),
            });
        }
    }
    rows
}

/// Times batches of submissions, and of tasks' whole ways.
fn time_turn(rig: &mut SchedulerRig, submits: &mut Vec<f64>, steps: &mut Vec<f64>) {
    for _ in 0..BATCHES_A_TURN {
        submits.push(time(|| rig.submit()));
        while rig.held() > 0 {
            rig.finish();
        }
        steps.push(time(|| rig.step()));
    }
}

/// Times submissions to longer and longer queues.
pub(super) fn submits(sizes: &Sizes, stop: &AtomicBool) -> Vec<SubmitRow> {
    let mut rigs = Vec::new();
    for queued in sizes.submits {
        // One worker, which is never free: the way a queue grows.
        let mut rig = SchedulerRig::new(Policy::LeastLoaded, 1, 1);
        rig.submit();
        rig.queue(*queued);
        rigs.push(rig);
    }
    let mut times = vec![Vec::new(); rigs.len()];
    for _ in 0..sizes.batches {
        if stop.load(Ordering::Relaxed) {
            return Vec::new();
        }
        for (place, rig) in rigs.iter_mut().enumerate() {
            times[place].push(time(|| rig.submit()));
            for _ in 0..BATCH {
                rig.cancel_latest();
            }
        }
    }
    let rows = sizes.submits.iter().zip(&mut times);
    rows.map(|(queued, times)| SubmitRow { queued: *queued, submit_ns: median(times) }).collect()
}

/// Nanoseconds that one of a batch took.
fn time(mut work: impl FnMut()) -> f64 {
    let began = Instant::now();
    for _ in 0..BATCH {
        work();
    }
    began.elapsed().as_nanos() as f64 / f64::from(BATCH)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}
