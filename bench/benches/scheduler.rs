//! What the scheduler's decisions cost: a task's whole way with few and many workers, an empty and a long queue;
//! the choice of a worker alone; a submission alone.

use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reparto_balancer::scheduler::Policy;
use reparto_bench::scale::SchedulerRig;

/// Tasks that are handed in between two looks at the clock.
const BATCH: u32 = 500;

const POLICIES: [(Policy, &str); 3] = [
    (Policy::RoundRobin, "round_robin"),
    (Policy::LeastLoaded, "least_loaded"),
    (Policy::Weighted, "weighted"),
];

/// Submit, assign, result.
fn step(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("scheduler step");
    group.throughput(Throughput::Elements(1));
    for queued in [0, 1_000_000] {
        for workers in [10, 1_000, 10_000] {
            let mut rig = SchedulerRig::new(Policy::LeastLoaded, workers, 1);
            rig.queue(queued);
            let id = BenchmarkId::new(format!("{queued} queued"), format!("{workers} workers"));
            group.bench_function(id, |bencher| bencher.iter(|| rig.step()));
        }
    }
    group.finish();
}

/// Submit and assign, timed without the results that make room again.
fn policy(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("policy choice");
    group.throughput(Throughput::Elements(1));
    for (policy, name) in POLICIES {
        for workers in [10, 10_000] {
            // Threads for a whole batch, so that every task finds a free one.
            let mut rig = SchedulerRig::new(policy, workers, BATCH);
            let id = BenchmarkId::new(name, format!("{workers} workers"));
            group.bench_function(id, |bencher| {
                bencher.iter_custom(|count| {
                    in_batches(
                        count,
                        &mut rig,
                        |rig| rig.submit(),
                        |rig| {
                            while rig.held() > 0 {
                                rig.finish();
                            }
                        },
                    )
                });
            });
        }
    }
    group.finish();
}

/// Submit while no worker is free.
fn submit(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("submit to a queue");
    group.throughput(Throughput::Elements(1));
    for queued in [0, 1_000_000] {
        let mut rig = SchedulerRig::new(Policy::LeastLoaded, 1, 1);
        rig.submit();
        rig.queue(queued);
        group.bench_function(BenchmarkId::from_parameter(format!("{queued} queued")), |bencher| {
            bencher.iter_custom(|count| {
                in_batches(
                    count,
                    &mut rig,
                    |rig| rig.submit(),
                    |rig| {
                        while rig.queued() > queued {
                            rig.cancel_latest();
                        }
                    },
                )
            });
        });
    }
    group.finish();
}

/// Does `work` so many times, and gives the time that it took without the `undo` after every batch.
fn in_batches(
    count: u64,
    rig: &mut SchedulerRig,
    work: impl Fn(&mut SchedulerRig),
    undo: impl Fn(&mut SchedulerRig),
) -> Duration {
    let mut took = Duration::ZERO;
    let mut left = count;
    while left > 0 {
        let batch = left.min(u64::from(BATCH));
        let began = Instant::now();
        for _ in 0..batch {
            work(rig);
        }
        took += began.elapsed();
        undo(rig);
        left -= batch;
    }
    took
}

criterion_group!(benches, step, policy, submit);
criterion_main!(benches);
