//! What a task's whole way through dialect and scheduler costs, both ways, without sockets.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reparto_bench::scale::{Speech, WayRig};

/// Clients, and workers.
const CLIENTS: usize = 4;
const WORKERS: usize = 2;

fn way(criterion: &mut Criterion) {
    for (name, speech) in [("a task's way", Speech::Native), ("a Gearman job's way", Speech::Gearman)] {
        ways_of(criterion, name, speech);
    }
}

fn ways_of(criterion: &mut Criterion, name: &str, speech: Speech) {
    let mut group = criterion.benchmark_group(name);
    for (window, bytes) in [(16, 64), (128, 64), (1024, 64), (128, 1024)] {
        let mut rig = WayRig::new(speech, (CLIENTS, WORKERS), window, bytes);
        let tasks = (CLIENTS * window) as u64;
        group.throughput(Throughput::Elements(tasks));
        group.bench_function(
            BenchmarkId::new(format!("{bytes} bytes"), format!("4 x {window}")),
            |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| rig.round().1).sum());
            },
        );
    }
    group.finish();
}

criterion_group!(benches, way);
criterion_main!(benches);
