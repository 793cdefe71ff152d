//! What it costs to write a frame, to find one in a buffer, and to understand it; and what an echo costs a raw worker,
//! which is what that one tells the balancer.

use std::hint::black_box;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reparto_bench::raw::{Output, Protocol, Reparto};
use reparto_protocol::{
    AssignTask, Frame, Message, Outcome, Task, TaskDone, TaskOptions, TaskResult, limits,
};

/// Payloads, in bytes: nothing, a small task's, one of the size that is no longer copied.
const PAYLOADS: [usize; 3] = [0, 64, 16 * 1024];

/// The four messages that every task travels in.
fn messages(payload: &[u8]) -> [(&'static str, Message<'_>); 4] {
    let options = TaskOptions::default();
    let task = Task { id: 7, action: "echo", options, payload };
    let assignment = AssignTask {
        id: 9 << 32 | 7,
        action: "echo",
        attempt: 1,
        deadline_ms: None,
        key: None,
        task_id: None,
        held: false,
        payload,
    };
    let result =
        TaskResult { id: 9 << 32 | 7, outcome: Outcome::Done, message: "", service_ns: None, payload };
    [
        ("TASK", Message::Task(task)),
        ("ASSIGN_TASK", Message::AssignTask(assignment)),
        ("TASK_RESULT", Message::TaskResult(result)),
        ("RESULT", Message::Result(TaskDone { id: 7, payload })),
    ]
}

/// A task with everything that a client may ask for.
fn task_with_all_options(payload: &[u8]) -> Message<'_> {
    let options = TaskOptions {
        priority: Some(9),
        deadline_ms: Some(10_000),
        wait_ms: Some(1_000),
        key: Some(b"photo.jpg"),
        max_attempts: Some(5),
        ..TaskOptions::default()
    };
    Message::Task(Task { id: 7, action: "thumbnail", options, payload })
}

fn encode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("encode");
    for bytes in PAYLOADS {
        let payload = vec![b'x'; bytes];
        let mut wire = BytesMut::with_capacity(2 * bytes + 1024);
        group.throughput(Throughput::Elements(1));
        let all = task_with_all_options(&payload);
        for (name, message) in messages(&payload).into_iter().chain([("TASK, all options", all)]) {
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher.iter(|| {
                    wire.clear();
                    black_box(&message).encode(&mut wire);
                    black_box(wire.len())
                });
            });
        }
    }
    group.finish();
}

fn decode(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decode");
    for bytes in PAYLOADS {
        let payload = vec![b'x'; bytes];
        group.throughput(Throughput::Elements(1));
        let all = task_with_all_options(&payload);
        for (name, message) in messages(&payload).into_iter().chain([("TASK, all options", all)]) {
            let mut wire = BytesMut::new();
            message.encode(&mut wire);
            group.bench_function(BenchmarkId::new(name, bytes), |bencher| {
                bencher.iter(|| {
                    let frame = Frame::parse(black_box(&wire), limits::DEFAULT_MAX_FRAME_BYTES);
                    let Ok(Some((frame, length))) = frame else { unreachable!("a whole frame was written") };
                    black_box(Message::decode(&frame).is_ok());
                    black_box(length)
                });
            });
        }
    }
    group.finish();
}

/// A raw worker reads a window of assignments and has their results ready to be written.
fn echo(criterion: &mut Criterion) {
    const WINDOW: usize = 128;
    let mut group = criterion.benchmark_group("echo");
    for bytes in PAYLOADS {
        let payload = vec![b'x'; bytes];
        let [_, (_, assignment), ..] = messages(&payload);
        let mut wire = BytesMut::new();
        (0..WINDOW).for_each(|_| assignment.encode(&mut wire));
        let mut worker = Reparto.worker(0, bytes);
        group.throughput(Throughput::Elements(WINDOW as u64));
        group.bench_function(BenchmarkId::from_parameter(bytes), |bencher| {
            bencher.iter(|| {
                let mut output = Output::default();
                black_box(worker.read(black_box(&wire), &mut output).is_ok());
                black_box(output)
            });
        });
    }
    group.finish();
}

criterion_group!(benches, encode, decode, echo);
criterion_main!(benches);
