//! The worker library's hand-over: from an assignment's bytes through the pool of threads to the result's bytes,
//! over loopback, from a balancer that is played here.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use bytes::BytesMut;
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use reparto_protocol::{Ack, AssignTask, FrameStream, Message, OwnedFrame, Ping, Pong, Welcome, limits};
use reparto_worker::{Task, Worker, WorkerHandle};

/// What every task carries: 64 bytes.
const PAYLOAD: &[u8; 64] = &[b'x'; 64];

/// A heartbeat so long that no PING comes in between.
const HEARTBEAT_MS: u32 = 3_600_000;

/// Tasks assigned at once: one alone, and as many as a window holds.
const BATCHES: [u64; 3] = [1, 32, 1_024];

/// A balancer with one worker, which echoes.
struct Played {
    stream: TcpStream,
    frames: FrameStream,
    out: BytesMut,
    task: u64,
    handle: WorkerHandle,
    working: std::thread::JoinHandle<()>,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

impl Played {
    fn start(threads: u32) -> Outcome<Played> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let worker = Worker::builder()
            .balancer(listener.local_addr()?.to_string())
            .threads(threads)
            .action("echo", |task: &Task| Ok(task.payload().clone()))
            .build()?;
        let handle = worker.handle();
        let working = std::thread::spawn(move || {
            if let Err(error) = worker.run() {
                eprintln!("the worker ended: {error}");
            }
        });
        let (stream, _) = listener.accept()?;
        stream.set_nodelay(true)?;
        let frames = FrameStream::new(limits::MAX_MAX_FRAME_BYTES);
        let mut played = Played { stream, frames, out: BytesMut::new(), task: 0, handle, working };
        played.greet()?;
        Ok(played)
    }

    /// HELLO is answered with WELCOME, REGISTER with ACK.
    fn greet(&mut self) -> Outcome<()> {
        self.next()?;
        self.send(&Message::Welcome(Welcome {
            version: limits::VERSION,
            features: 0,
            max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
            heartbeat_ms: HEARTBEAT_MS,
            silence_ms: HEARTBEAT_MS,
            agent: "bench",
        }))?;
        let register = self.next()?;
        let id = register.as_frame().id;
        self.send(&Message::Ack(Ack { id, window: limits::DEFAULT_WINDOW }))?;
        Ok(())
    }

    fn send(&mut self, message: &Message<'_>) -> io::Result<()> {
        message.encode(&mut self.out);
        self.flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        let written = self.stream.write_all(&self.out);
        self.out.clear();
        written
    }

    fn next(&mut self) -> Outcome<OwnedFrame> {
        loop {
            if let Some(frame) = self.frames.next_frame()? {
                return Ok(frame);
            }
            let mut buffer = [0; 64 * 1024];
            match self.stream.read(&mut buffer)? {
                0 => return Err("the worker closed the connection".into()),
                count => self.frames.push(&buffer[..count]),
            }
        }
    }

    /// Assigns so many tasks in one write, and takes all their results.
    fn exchange(&mut self, tasks: u64) -> Outcome<()> {
        for _ in 0..tasks {
            self.task += 1;
            Message::AssignTask(AssignTask {
                id: self.task,
                action: "echo",
                attempt: 1,
                deadline_ms: None,
                key: None,
                task_id: None,
                held: false,
                payload: PAYLOAD,
            })
            .encode(&mut self.out);
        }
        self.flush()?;
        let mut results = 0;
        while results < tasks {
            let frame = self.next()?;
            match Message::decode(&frame.as_frame())? {
                Message::TaskResult(_) => results += 1,
                Message::Ping(Ping { id }) => self.send(&Message::Pong(Pong { id }))?,
                _ => {}
            }
        }
        Ok(())
    }

    fn stop(self) -> Outcome<()> {
        self.handle.stop(Duration::ZERO);
        drop(self.stream);
        self.working.join().map_err(|_| "the worker's thread panicked")?;
        Ok(())
    }
}

fn hand_over(criterion: &mut Criterion) {
    if let Err(error) = try_hand_over(criterion) {
        panic!("the worker pool cannot be measured: {error}");
    }
}

fn try_hand_over(criterion: &mut Criterion) -> Outcome<()> {
    let mut group = criterion.benchmark_group("worker pool hand-over");
    for threads in [1, 4] {
        let mut played = Played::start(threads)?;
        for batch in BATCHES {
            group.throughput(Throughput::Elements(batch));
            let id = BenchmarkId::new(format!("{threads} threads"), format!("{batch} at once"));
            let mut failure = None;
            group.bench_function(id, |bencher| {
                bencher.iter(|| {
                    if failure.is_none() {
                        failure = played.exchange(batch).err();
                    }
                });
            });
            if let Some(error) = failure {
                return Err(error);
            }
        }
        played.stop()?;
    }
    group.finish();
    Ok(())
}

criterion_group!(benches, hand_over);
criterion_main!(benches);
