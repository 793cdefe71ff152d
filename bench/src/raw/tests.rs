//! The codecs, held against bytes as the protocols' pages have them, and the drivers against servers in this process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::AtomicBool;
use std::thread;
use std::time::Duration;

use bytes::BytesMut;
use reparto_balancer::{Balancer, Settings};
use reparto_protocol::{
    Accepted, AssignTask, ErrorCode, ErrorMessage, Frame, Message, TaskDone, Welcome, limits,
};

use super::*;

static GO_ON: AtomicBool = AtomicBool::new(false);

/// What a client says for these tasks.
fn tasks(codec: &mut dyn ClientCodec, ids: &[u64], size: usize) -> Vec<u8> {
    let mut output = Output::with_payload(vec![b'x'; size]);
    codec.tasks(ids, &mut output);
    output.bytes(&[])
}

/// What a worker answers, and how much it took.
fn work(codec: &mut dyn WorkerCodec, input: &[u8]) -> (usize, Vec<u8>) {
    let mut output = Output::default();
    let taken = codec.read(input, &mut output).unwrap();
    (taken, output.bytes(input))
}

/// Feeds a client in two pieces, split everywhere: the same tasks must be done.
fn read_split_everywhere(make: &dyn Fn() -> Box<dyn ClientCodec>, input: &[u8], wanted: &[u64]) {
    for split in 0..=input.len() {
        let (mut codec, mut done, mut output) = (make(), Vec::new(), Output::default());
        let taken = codec.read(&input[..split], &mut output, &mut done).unwrap();
        assert!(taken <= split);
        let rest = codec.read(&input[taken..], &mut output, &mut done).unwrap();
        assert_eq!(taken + rest, input.len());
        assert_eq!(done, wanted, "split at {split}");
    }
}

#[test]
fn a_reparto_task_is_a_task_frame_with_its_own_number() {
    let bytes = tasks(Reparto.client(0, 64).as_mut(), &[0, 7], 64);
    let (first, length) = Frame::parse(&bytes, 1024).unwrap().unwrap();
    let (second, rest) = Frame::parse(&bytes[length..], 1024).unwrap().unwrap();
    assert_eq!(length + rest, bytes.len());
    for (frame, id) in [(first, 1), (second, 8)] {
        let Message::Task(task) = Message::decode(&frame).unwrap() else { panic!("not a task: {frame:?}") };
        assert_eq!((task.id, task.action, task.payload.len()), (id, "echo", 64));
    }
}

#[test]
fn reparto_results_are_found_however_the_bytes_are_split() {
    let mut wire = BytesMut::new();
    let welcome = Welcome {
        version: 1,
        features: 0,
        max_frame_bytes: limits::DEFAULT_MAX_FRAME_BYTES,
        heartbeat_ms: 1,
        silence_ms: 2,
        agent: "",
    };
    Message::Welcome(welcome).encode(&mut wire);
    for id in [3, 1] {
        Message::Result(TaskDone { id, payload: b"12345678" }).encode(&mut wire);
    }
    read_split_everywhere(&|| Reparto.client(0, 8), &wire, &[2, 0]);
}

#[test]
fn a_reparto_refusal_is_an_error_that_carries_its_sentence() {
    let mut wire = BytesMut::new();
    let error = ErrorMessage { id: 1, code: ErrorCode::QueueFull, message: "no room", payload: b"" };
    Message::Error(error).encode(&mut wire);
    let error = Reparto.client(0, 8).read(&wire, &mut Output::default(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
}

#[test]
fn a_reparto_worker_answers_every_assignment_with_its_payload() {
    for payload in [b"hola".to_vec(), vec![b'L'; 100_000]] {
        let mut wire = BytesMut::new();
        for id in [77, 78] {
            let assignment = AssignTask {
                id,
                action: "echo",
                attempt: 1,
                deadline_ms: None,
                key: None,
                task_id: None,
                held: false,
                payload: &payload,
            };
            Message::AssignTask(assignment).encode(&mut wire);
        }
        let (taken, answers) = work(Reparto.worker(0, 8).as_mut(), &wire);
        assert_eq!(taken, wire.len());
        let (first, length) = Frame::parse(&answers, 1 << 20).unwrap().unwrap();
        let (second, _) = Frame::parse(&answers[length..], 1 << 20).unwrap().unwrap();
        for (frame, id) in [(first, 77), (second, 78)] {
            let Message::TaskResult(result) = Message::decode(&frame).unwrap() else { panic!("{frame:?}") };
            assert_eq!(result.id, id);
            assert!(result.payload == payload);
        }
    }
}

/// A packet from gearmand.
fn response(kind: u32, data: &[u8]) -> Vec<u8> {
    [b"\0RES", kind.to_be_bytes().as_slice(), &(data.len() as u32).to_be_bytes(), data].concat()
}

/// A packet for gearmand.
fn request(kind: u32, data: &[u8]) -> Vec<u8> {
    [b"\0REQ", kind.to_be_bytes().as_slice(), &(data.len() as u32).to_be_bytes(), data].concat()
}

#[test]
fn a_gearman_job_is_a_submit_job_without_a_unique_key() {
    let bytes = tasks(Gearman.client(0, 10).as_mut(), &[5], 10);
    assert_eq!(bytes, request(7, b"echo\0\0\0\0\0\0\0\0\0\x05xx"));
}

#[test]
fn gearman_results_are_found_however_the_bytes_are_split() {
    let done = |id: u8| response(13, &[b"H:host:1\0\0\0\0\0\0\0\0".as_slice(), &[id, b'x']].concat());
    let wire =
        [response(17, b"?"), response(8, b"H:host:1"), done(4), response(8, b"H:host:2"), done(9)].concat();
    read_split_everywhere(&|| Gearman.client(0, 9), &wire, &[4, 9]);
}

#[test]
fn a_gearman_worker_asks_for_more_jobs_at_once_while_there_are_some_and_sleeps_when_there_are_none() {
    let mut worker = Gearman.worker(0, 8);
    let (_, said) = work(worker.as_mut(), &response(17, b"?"));
    assert_eq!(said, request(4, b""), "known to the server, it sleeps");
    let (_, said) = work(worker.as_mut(), &response(6, b""));
    assert_eq!(said, request(9, b""), "woken, it asks for one job");

    let job = response(11, b"H:1\0echo\0payload");
    let (taken, said) = work(worker.as_mut(), &job);
    let grab = request(9, b"");
    assert_eq!(taken, job.len());
    assert_eq!(said, [request(13, b"H:1\0payload"), grab.clone(), grab.clone()].concat());

    let (_, said) = work(worker.as_mut(), &[response(10, b""), response(10, b"")].concat());
    assert_eq!(said, request(4, b""), "nothing there, nothing asked for: it sleeps");
}

#[test]
fn a_gearman_worker_does_not_sleep_while_a_grab_is_unanswered() {
    let mut worker = Gearman.worker(0, 8);
    work(worker.as_mut(), &[response(17, b"?"), response(6, b"")].concat());
    let job = response(11, b"H:1\0echo\0x");
    work(worker.as_mut(), &job); // Two are asked for.
    let (_, said) = work(worker.as_mut(), &response(10, b""));
    assert_eq!(said, b"", "one NO_JOB, and one answer to come");
}

#[test]
fn a_nats_request_has_a_reply_subject_of_its_own_and_carries_its_number_in_the_payload() {
    let mut client = Nats.client(3, 10);
    let first = tasks(client.as_mut(), &[258], 10);
    assert_eq!(first, b"PUB echo _INBOX.3.0000000001 10\r\n\0\0\0\0\0\0\x01\x02xx\r\n");
    let ninth = tasks(client.as_mut(), &[0, 0, 0, 0, 0, 0, 0, 0], 10);
    assert!(ninth.starts_with(b"PUB echo _INBOX.3.0000000002 10"));
    let tenth = tasks(client.as_mut(), &[0], 10);
    assert!(tenth.starts_with(b"PUB echo _INBOX.3.0000000010 10"));
}

#[test]
fn nats_replies_are_found_however_the_bytes_are_split() {
    let wire =
        b"INFO {\"max_payload\":1048576}\r\nPONG\r\nMSG _INBOX.0 1 9\r\n\0\0\0\0\0\0\0\x04\n\r\nPING\r\n\
        +OK\r\nMSG _INBOX.0 1 9\r\n\0\0\0\0\0\0\0\x09\r\r\n";
    read_split_everywhere(&|| Nats.client(0, 9), wire, &[4, 9]);
}

#[test]
fn a_nats_worker_replies_to_the_subject_it_was_given() {
    let wire = b"PING\r\nMSG echo 1 _INBOX.3 4\r\nhola\r\nMSG echo 1 _INBOX.1 2\r\n\r\n\r\nMSG echo 1 _INBOX";
    let (taken, said) = work(Nats.worker(0, 4).as_mut(), wire);
    assert_eq!(said, b"PONG\r\nPUB _INBOX.3 4\r\nhola\r\nPUB _INBOX.1 2\r\n\r\n\r\n");
    assert_eq!(taken, wire.len() - b"MSG echo 1 _INBOX".len());
}

#[test]
fn bytes_of_another_protocol_are_an_error_that_shows_them() {
    let mut output = Output::default();
    let nats = Nats.client(0, 8).read(b"HTTP/1.1 400 Bad Request\r\n", &mut output, &mut Vec::new());
    assert!(nats.is_err_and(|error| error.to_string().contains("HTTP/1.1 400")));
    let nats = Nats.client(0, 8).read(b"-ERR 'Authorization Violation'\r\n", &mut output, &mut Vec::new());
    assert!(nats.is_err_and(|error| error.to_string().contains("Authorization")));
    let nats = Nats.client(0, 8).read(&[b'x'; 20_000], &mut output, &mut Vec::new());
    assert!(nats.is_err_and(|error| error.to_string().contains("does not end")));
    let gearman = Gearman.client(0, 8).read(b"HTTP/1.1 400", &mut output, &mut Vec::new());
    assert!(gearman.is_err());
    let reparto = Reparto.client(0, 8).read(b"\0\0\0\x01HTTP/1.1 400", &mut output, &mut Vec::new());
    assert!(reparto.is_err());
    let relay = Relay.client(0, 8).read(b"HTTP/1.1 400 Bad", &mut output, &mut Vec::new());
    assert!(relay.is_err());
}

#[test]
fn background_tasks_of_reparto_are_done_once_accepted_or_once_their_results_are_fetched() {
    let bytes = tasks(RepartoBackground.client(0, 64).as_mut(), &[7], 64);
    let (frame, _) = Frame::parse(&bytes, 1024).unwrap().unwrap();
    let Message::Task(task) = Message::decode(&frame).unwrap() else { panic!("not a task: {frame:?}") };
    assert!(task.id == 8 && task.options.background);

    let mut wire = BytesMut::new();
    for id in [8, 2] {
        let accepted = Accepted { id, task_id: [id as u8; 16], duplicate: false };
        Message::Accepted(accepted).encode(&mut wire);
    }
    read_split_everywhere(&|| RepartoBackground.client(0, 8), &wire, &[7, 1]);

    let (mut client, mut output, mut done) = (RepartoFetched.client(0, 8), Output::default(), Vec::new());
    client.read(&wire, &mut output, &mut done).unwrap();
    assert!(done.is_empty());
    let asked = output.bytes(&[]);
    let (frame, _) = Frame::parse(&asked, 1024).unwrap().unwrap();
    let Message::Fetch(fetch) = Message::decode(&frame).unwrap() else { panic!("no FETCH: {frame:?}") };
    assert_eq!((fetch.id, fetch.task_id), (8, [8; 16]));
    wire.clear();
    Message::Result(TaskDone { id: 8, payload: b"12345678" }).encode(&mut wire);
    client.read(&wire, &mut output, &mut done).unwrap();
    assert_eq!(done, [7]);
}

#[test]
fn a_background_job_of_gearman_has_a_unique_key_and_is_done_once_it_is_created() {
    let mut client = GearmanBackground.client(3, 8);
    let said = tasks(client.as_mut(), &[5, 6], 8);
    let job = |key: &str| request(18, format!("echo\0client-3-{key}\0xxxxxxxx").as_bytes());
    assert_eq!(said, [job("0000000000000001"), job("0000000000000002")].concat());
    let mut done = Vec::new();
    let wire = [response(17, b"?"), response(8, b"H:host:1"), response(8, b"H:host:2")].concat();
    client.read(&wire, &mut Output::default(), &mut done).unwrap();
    assert_eq!(done, [5, 6]);
    let unasked = client.read(&response(8, b"H:host:3"), &mut Output::default(), &mut done);
    assert!(matches!(unasked, Err(RawError::Unasked(_))));
}

#[test]
fn a_jetstream_publish_has_its_number_in_its_reply_subject_and_gets_it_back() {
    let mut client = JetStream.client(3, 8);
    let said = tasks(client.as_mut(), &[258, 1], 8);
    let wanted = "PUB bench _INBOX.3.0000000258 8\r\nxxxxxxxx\r\n\
                  PUB bench _INBOX.3.0000000001 8\r\nxxxxxxxx\r\n";
    assert_eq!(String::from_utf8_lossy(&said), wanted);
    let wire = b"INFO {}\r\nPONG\r\nMSG _INBOX.3.made 1 15\r\n{\"config\":\"ok\"}\r\n\
        MSG _INBOX.3.0000000001 1 27\r\n{\"stream\":\"bench\",\"seq\":12}\r\n\
        MSG _INBOX.3.0000000258 1 27\r\n{\"stream\":\"bench\",\"seq\":13}\r\n";
    read_split_everywhere(&|| JetStream.client(3, 8), wire, &[1, 258]);
    let refusal =
        b"MSG _INBOX.3.made 1 52\r\n{\"type\":\"x\",\"error\":{\"description\":\"no space left\"}}\r\n";
    let error = JetStream.client(3, 8).read(refusal, &mut Output::default(), &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("no space left"), "{error}");
}

#[test]
fn a_job_of_beanstalkd_is_done_once_it_is_inserted() {
    let said = tasks(Beanstalk.client(0, 8).as_mut(), &[4], 8);
    assert_eq!(said, b"put 1024 0 60 8\r\nxxxxxxxx\r\n");
    let mut client = Beanstalk.client(0, 8);
    tasks(client.as_mut(), &[4, 9], 8);
    let (mut output, mut done) = (Output::default(), Vec::new());
    let wire = b"USING echo\r\nINSERTED 1\r\nINSERTED 2\r\nINSER";
    assert_eq!(client.read(wire, &mut output, &mut done).unwrap(), wire.len() - b"INSER".len());
    assert!(client.ready());
    assert_eq!(done, [4, 9]);
    let refused = client.read(b"OUT_OF_MEMORY\r\n", &mut output, &mut done).unwrap_err();
    assert!(refused.to_string().contains("OUT_OF_MEMORY"), "{refused}");
}

/// A frame of AMQP with a method.
fn method(channel: u8, class: u8, number: u8, arguments: &[u8]) -> Vec<u8> {
    let length = 4 + arguments.len() as u8;
    [&[1, 0, channel, 0, 0, 0, length, 0, class, 0, number], arguments, &[0xCE]].concat()
}

#[test]
fn an_amqp_client_opens_a_channel_with_confirms_and_declares_a_quorum_queue() {
    let mut client = AmqpConfirmed.client(0, 8);
    let mut says = |input: &[u8]| {
        let mut output = Output::default();
        assert_eq!(client.read(input, &mut output, &mut Vec::new()).unwrap(), input.len());
        output.bytes(&[])
    };
    assert_eq!(
        says(&method(0, 10, 10, b"\0\x09\0\0\0\0")),
        method(0, 10, 11, b"\0\0\0\0\x05PLAIN\0\0\0\x0C\0guest\0guest\x05en_US")
    );
    assert_eq!(
        says(&method(0, 10, 30, b"\x07\xFF\0\x02\0\0\0\x3C")),
        [method(0, 10, 31, b"\x07\xFF\0\x02\0\0\0\0"), method(0, 10, 40, b"\x01/\0\0")].concat()
    );
    assert_eq!(says(&method(0, 10, 41, b"\0")), method(1, 20, 10, b"\0"));
    assert_eq!(says(&method(1, 20, 11, b"\0\0\0\0")), method(1, 85, 10, b"\0"));
    let table = b"\0\0\x05bench\x02\0\0\0\x18\x0Cx-queue-typeS\0\0\0\x06quorum";
    assert_eq!(says(&method(1, 85, 11, b"")), method(1, 50, 10, table));
    assert_eq!(says(&method(1, 50, 11, b"\x05bench\0\0\0\0\0\0\0\0")), b"");
    assert!(client.ready());
}

#[test]
fn amqp_messages_are_done_once_confirmed_one_by_one_or_all_up_to_one() {
    let mut client = AmqpConfirmed.client(0, 8);
    let said = tasks(client.as_mut(), &[40, 41, 42, 43], 8);
    let publish = [
        method(1, 60, 40, b"\0\0\0\x05bench\0"),
        b"\x02\0\x01\0\0\0\x0F\0\x3C\0\0\0\0\0\0\0\0\0\x08\x10\0\x02\xCE".to_vec(),
        b"\x03\0\x01\0\0\0\x08xxxxxxxx\xCE".to_vec(),
    ];
    assert_eq!(said, publish.concat().repeat(4));
    let ack = |tag: u8, multiple: u8| method(1, 60, 80, &[0, 0, 0, 0, 0, 0, 0, tag, multiple]);
    let mut done = Vec::new();
    let wire = [ack(2, 0), ack(3, 1), ack(4, 0)].concat();
    client.read(&wire, &mut Output::default(), &mut done).unwrap();
    assert_eq!(done, [41, 40, 42, 43]);
    let again = client.read(&ack(4, 0), &mut Output::default(), &mut done);
    assert!(matches!(again, Err(RawError::Unasked(4))));
    let nack = client.read(&method(1, 60, 120, &[0; 9]), &mut Output::default(), &mut done);
    assert!(nack.is_err_and(|error| error.to_string().contains("NACK")));
}

/// Runs a balancer in this process while `body` runs.
fn with_balancer(body: impl FnOnce(SocketAddr, SocketAddr)) {
    let any_port = ([127, 0, 0, 1], 0).into();
    let settings = Settings { clients: any_port, workers: any_port, ..Settings::default() };
    let balancer = Balancer::bind(settings).unwrap();
    let (clients, workers, handle) = (balancer.clients_addr(), balancer.workers_addr(), balancer.handle());
    let thread = thread::spawn(move || balancer.run());
    body(clients, workers);
    handle.shutdown();
    thread.join().unwrap().unwrap();
}

fn short(window: usize, size: usize) -> Load {
    Load { connections: 2, window, size, duration: Duration::from_millis(100), ..Load::default() }
}

#[test]
fn every_task_through_a_real_balancer_is_answered_once_in_a_closed_loop() {
    with_balancer(|clients, workers| {
        for (window, size) in [(1, 64), (64, 64), (4, 65_536), (2, 1_000_000)] {
            let working = Workers::connect(&Reparto, workers, 2, size).unwrap();
            let measurement = drive(&Reparto, clients, &short(window, size), &GO_ON).unwrap();
            assert_eq!(measurement.unanswered, 0);
            assert!(measurement.latency_us(0.999) >= measurement.latency_us(0.5));
            working.stop().unwrap();
        }
    });
}

#[test]
fn a_load_of_so_many_tasks_ends_once_they_are_answered() {
    let servers = EchoServers::start(1).unwrap();
    let load = Load { duration: Duration::from_secs(60), tasks: 1_001, ..short(64, 64) };
    let measurement = drive(&Relay, servers.addresses()[0], &load, &GO_ON).unwrap();
    assert_eq!(measurement.tasks, 2 * 1_001);
}

#[test]
fn an_open_loop_sends_as_many_tasks_as_the_rate_says_and_all_are_answered() {
    with_balancer(|clients, workers| {
        let working = Workers::connect(&Reparto, workers, 2, 64).unwrap();
        let load = Load { pace: Pace::Rate(10_000.0), ..short(1, 64) };
        let measurement = drive(&Reparto, clients, &load, &GO_ON).unwrap();
        assert_eq!(measurement.unanswered, 0);
        assert!(measurement.tasks <= 1_000, "{} tasks in 0.1 s", measurement.tasks);
        assert_eq!(measurement.latency_count(), 1_000);
        working.stop().unwrap();
    });
}

#[test]
fn echo_servers_send_back_what_a_window_of_any_size_sends() {
    let servers = EchoServers::start(2).unwrap();
    for (window, size) in [(1, 8), (256, 64), (4, 1_000_000)] {
        let measurement = drive(&Relay, servers.addresses()[1], &short(window, size), &GO_ON).unwrap();
        assert_eq!(measurement.unanswered, 0);
    }
}

#[test]
fn a_load_out_of_bounds_is_refused_with_its_bounds() {
    let nobody: SocketAddr = ([127, 0, 0, 1], 1).into();
    let refused = |load: Load| drive(&Relay, nobody, &load, &GO_ON).unwrap_err().to_string();
    assert!(refused(short(0, 64)).contains("the window is 0, but must be 1 to"));
    assert!(refused(short(1, 7)).contains("size in bytes is 7, but must be 8 to"));
    assert!(refused(Load { pace: Pace::Rate(f64::NAN), ..short(1, 8) }).contains("the rate is NaN"));
    assert!(refused(Load { pace: Pace::Rate(1e12), ..short(1, 8) }).contains("at most"));
    assert!(refused(short(1, 64)).contains("cannot connect to 127.0.0.1:1"));
}

/// A server that takes one connection and does `script` with it.
fn server(script: impl FnOnce(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || script(listener.accept().unwrap().0));
    address
}

#[test]
fn a_task_that_is_answered_twice_fails_the_run() {
    let address = server(|mut stream| {
        let mut frame = [0; 16 + 64];
        stream.read_exact(&mut frame).unwrap();
        stream.write_all(&[frame, frame].concat()).unwrap();
        let _ = stream.read(&mut frame);
    });
    let load = Load { connections: 1, ..short(1, 64) };
    assert!(matches!(drive(&Relay, address, &load, &GO_ON), Err(RawError::Unasked(0))));
}

#[test]
fn a_server_that_closes_fails_the_run_in_either_loop() {
    for pace in [Pace::Window, Pace::Rate(1_000.0)] {
        let address = server(|mut stream| {
            let _ = stream.read(&mut [0; 16]);
        });
        let load = Load { connections: 1, pace, ..short(1, 64) };
        assert!(matches!(drive(&Relay, address, &load, &GO_ON), Err(RawError::Closed)));
    }
}

#[test]
fn a_raised_flag_interrupts_a_run() {
    let servers = EchoServers::start(1).unwrap();
    for pace in [Pace::Window, Pace::Rate(1_000.0)] {
        let load = Load { duration: Duration::from_secs(3_600), pace, ..short(1, 64) };
        let outcome = drive(&Relay, servers.addresses()[0], &load, &AtomicBool::new(true));
        assert!(matches!(outcome, Err(RawError::Interrupted)));
    }
}

#[test]
fn a_nats_client_greets_and_waits_for_the_pong_before_it_asks() {
    let address = server(|mut stream| {
        stream.write_all(b"INFO {}\r\n").unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        for wanted in ["CONNECT {", "SUB _INBOX.0.* 1", "PING"] {
            line.clear();
            reader.read_line(&mut line).unwrap();
            assert!(line.starts_with(wanted), "{line}");
        }
        stream.write_all(b"PONG\r\n").unwrap();
        loop {
            line.clear();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            assert!(line.starts_with("PUB echo _INBOX.0.0"), "{line}");
            let mut payload = [0; 66];
            reader.read_exact(&mut payload).unwrap();
            let reply = [b"MSG _INBOX.0.1 1 64\r\n".as_slice(), &payload].concat();
            stream.write_all(&reply).unwrap();
        }
    });
    let load = Load { connections: 1, ..short(4, 64) };
    assert!(drive(&Nats, address, &load, &GO_ON).is_ok());
}
