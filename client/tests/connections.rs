//! Connections that fail, end, go away or never come, against balancers that follow a script.

#![allow(clippy::unwrap_used)] // A panic here is a failed test, in its helpers too.

use std::io::Write;
use std::sync::atomic::Ordering;
use std::sync::mpsc;
use std::time::Duration;

use reparto_client::{Client, ClientBuilder, ClientError, ConnectFailure, ErrorCode};
use reparto_protocol::{FrameType, GoAway, Message, limits};

use support::{FakeBalancer, PATIENCE, nobody};

mod support;

fn builder(balancers: &[&FakeBalancer]) -> ClientBuilder {
    support::client()
        .balancers(balancers.iter().map(|balancer| &balancer.address[..]))
        .reconnect_for(PATIENCE)
}

/// Takes a task on the first connection and closes it without an answer; echoes on every further one.
fn drops_the_first() -> FakeBalancer {
    FakeBalancer::start(|mut peer, number| {
        peer.welcome();
        if number == 0 {
            peer.next_task();
        } else {
            peer.echo_until_closed();
        }
    })
}

#[test]
fn a_client_that_finds_nobody_tells_every_address_and_why() {
    let addresses = [nobody(), nobody(), "not an address".into()];
    let ClientError::NoBalancer(error) = Client::connect(addresses.clone()).unwrap_err() else { panic!() };
    assert_eq!(
        error.attempts.iter().map(|attempt| &attempt.address).collect::<Vec<_>>(),
        addresses.iter().collect::<Vec<_>>()
    );
    assert_eq!(error.attempts[0].failure, ConnectFailure::Io(std::io::ErrorKind::ConnectionRefused));
    assert!(matches!(error.attempts[2].failure, ConnectFailure::Resolve(_)));
    let text = error.to_string();
    assert!(
        text.starts_with(&format!("no balancer at {} (connection refused), nor at", addresses[0])),
        "{text}"
    );
}

#[test]
fn a_client_without_addresses_says_so() {
    assert!(matches!(Client::connect([""; 0]), Err(ClientError::NoAddress)));
}

#[test]
fn the_second_address_serves_when_the_first_does_not() {
    let balancer = FakeBalancer::echo();
    let client = Client::connect([nobody(), balancer.address.clone()]).unwrap();
    assert_eq!(client.balancer(), balancer.address);
    assert_eq!(client.submit("echo", "x").unwrap().wait().unwrap(), "x");
}

#[test]
fn a_lost_connection_ends_its_tasks_with_connection_lost_and_the_next_task_makes_a_new_one() {
    let balancer = drops_the_first();
    let client = builder(&[&balancer]).connect().unwrap();
    let failure = client.submit("echo", "lost").unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::ConnectionLost);
    assert_eq!(client.submit("echo", "found").unwrap().wait().unwrap(), "found");
    assert_eq!(balancer.connections.load(Ordering::SeqCst), 2);
}

#[test]
fn tasks_that_are_safe_to_repeat_are_sent_again_to_another_balancer_in_their_order() {
    let first = FakeBalancer::start(|mut peer, number| {
        if number == 0 {
            peer.welcome();
            for _ in 0..10 {
                peer.next_task();
            }
        }
    });
    let (tell, told) = mpsc::channel();
    let second = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        while let Some((id, payload)) = peer.next_task() {
            tell.send(payload.clone()).unwrap();
            peer.result(id, &payload);
        }
    });
    let client = builder(&[&first, &second]).connect().unwrap();
    let submit = |n: usize, safe| client.task("echo").payload(n.to_string()).safe_to_repeat(safe).submit();
    let handles: Vec<_> = (0..10).map(|n| submit(n, n != 5).unwrap()).collect();
    for (number, handle) in handles.iter().enumerate() {
        match handle.wait() {
            Ok(result) => assert_eq!(result, number.to_string()),
            Err(failure) => assert_eq!((number, failure.code), (5, ErrorCode::ConnectionLost)),
        }
    }
    let order: Vec<_> = told.try_iter().collect();
    assert_eq!(order, ["0", "1", "2", "3", "4", "6", "7", "8", "9"]);
    assert_eq!(client.balancer(), second.address);
}

#[test]
fn a_task_that_brings_every_balancer_down_is_given_up() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        peer.next_task();
    });
    let client = builder(&[&balancer]).connect().unwrap();
    let failure = client.task("poison").safe_to_repeat(true).submit().unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::ConnectionLost);
    assert_eq!(balancer.connections.load(Ordering::SeqCst), 6);
}

#[test]
fn after_goaway_what_is_in_flight_ends_there_and_new_tasks_go_elsewhere() {
    let (tell, told) = mpsc::channel::<()>();
    let told = std::sync::Mutex::new(told);
    let first = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        let (id, _) = peer.next_task().unwrap();
        peer.send(Message::GoAway(GoAway { message: "shutting down" }));
        told.lock().unwrap().recv_timeout(PATIENCE).unwrap();
        peer.result(id, b"from the first");
        assert!(peer.next().is_none(), "the client closes a connection that has nothing left");
    });
    let second = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        while let Some((id, _)) = peer.next_task() {
            peer.result(id, b"from the second");
        }
    });
    let client = builder(&[&first, &second]).connect().unwrap();
    let old = client.submit("echo", "").unwrap();
    wait_until(|| !client.is_connected());
    assert_eq!(client.submit("echo", "").unwrap().wait().unwrap(), "from the second");
    assert_eq!(old.try_result(), None);
    tell.send(()).unwrap();
    assert_eq!(old.wait().unwrap(), "from the first");
    assert_eq!(client.submit("echo", "").unwrap().wait().unwrap(), "from the second");
    assert_eq!(second.connections.load(Ordering::SeqCst), 1);
}

fn wait_until(condition: impl Fn() -> bool) {
    let start = std::time::Instant::now();
    while !condition() {
        assert!(start.elapsed() < PATIENCE, "the condition never came");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn a_safe_task_that_is_refused_by_a_balancer_shutting_down_goes_to_another_one() {
    let first = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        while let Some((id, _)) = peer.next_task() {
            peer.error(id, ErrorCode::ShuttingDown, "the balancer is shutting down");
        }
    });
    let second = FakeBalancer::echo();
    let client = builder(&[&first, &second]).connect().unwrap();
    let plain = client.submit("echo", "plain").unwrap();
    assert_eq!(plain.wait().unwrap_err().code, ErrorCode::ShuttingDown);
    let client = builder(&[&first, &second]).connect().unwrap();
    let safe = client.task("echo").payload("safe").safe_to_repeat(true).submit().unwrap();
    assert_eq!(safe.wait().unwrap(), "safe");
}

#[test]
fn a_silent_balancer_is_asked_and_then_given_up() {
    let (tell, told) = mpsc::channel();
    let balancer = FakeBalancer::start(move |mut peer, number| {
        if number > 0 {
            peer.welcome();
            return peer.echo_until_closed();
        }
        // Time enough for the PING to be written, whatever the machine does.
        peer.welcome_with(1 << 20, 30, 5_000);
        while let Some(frame) = peer.next() {
            let _ = tell.send(frame.as_frame().kind);
        }
    });
    let client = builder(&[&balancer]).connect().unwrap();
    let failure = client.submit("echo", "x").unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::ConnectionLost);
    assert!(failure.message.contains("silent"), "{failure}");
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), FrameType::Task);
    assert_eq!(told.recv_timeout(PATIENCE).unwrap(), FrameType::Ping);
    assert_eq!(client.submit("echo", "y").unwrap().wait().unwrap(), "y");
}

#[test]
fn a_balancer_that_answers_pings_may_take_its_time() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome_with(1 << 20, 20, 20_000);
        let (id, _) = peer.next_task().unwrap();
        for _ in 0..3 {
            let frame = peer.next().unwrap();
            assert_eq!(frame.as_frame().kind, FrameType::Ping);
            peer.send(Message::Pong(reparto_protocol::Pong { id: frame.as_frame().id }));
        }
        peer.result(id, b"at last");
        peer.hold();
    });
    let client = builder(&[&balancer]).connect().unwrap();
    assert_eq!(client.submit("slow", "").unwrap().wait().unwrap(), "at last");
}

/// Takes one connection, and closes it with its listener when told.
fn vanishing() -> (String, mpsc::Sender<()>) {
    let (vanish, vanished) = mpsc::channel::<()>();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        drop(listener);
        let mut peer = support::Peer::new(stream);
        peer.welcome();
        let _ = vanished.recv_timeout(PATIENCE);
    });
    (address, vanish)
}

#[test]
fn without_a_balancer_what_waits_ends_with_every_address_named() {
    let (address, vanish) = vanishing();
    let client = support::client().balancer(&address[..]).reconnect_for(Duration::ZERO).connect().unwrap();
    vanish.send(()).unwrap();
    wait_until(|| !client.is_connected());
    let failure = client.task("echo").safe_to_repeat(true).submit().unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::ConnectionLost);
    assert!(failure.message.contains(&address) && failure.message.contains("refused"), "{failure}");
    assert_eq!(client.in_flight(), 0);
    assert_eq!(client.unreachable().map(|error| error.to_string()), Some(failure.message));
}

#[test]
fn a_task_that_waits_for_a_connection_can_be_cancelled_and_can_expire() {
    let (address, vanish) = vanishing();
    let client = support::client().balancer(address).reconnect_for(PATIENCE).connect().unwrap();
    vanish.send(()).unwrap();
    wait_until(|| !client.is_connected());
    let stays = client.submit("echo", "").unwrap();
    let cancelled = client.submit("echo", "").unwrap();
    let expires = client.task("echo").deadline(Duration::from_millis(1)).submit().unwrap();
    cancelled.cancel();
    assert_eq!(cancelled.wait().unwrap_err().code, ErrorCode::Cancelled);
    assert_eq!(expires.wait().unwrap_err().code, ErrorCode::Expired);
    assert_eq!(stays.try_result(), None);
    assert_eq!(client.in_flight(), 1);
}

#[test]
fn whoever_does_not_greet_as_a_balancer_is_told_apart() {
    let silent = FakeBalancer::start(|mut peer, _| peer.hold());
    let closes = FakeBalancer::start(|mut peer, _| drop(peer.next()));
    let web = FakeBalancer::start(|mut peer, _| {
        peer.next();
        peer.stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").unwrap();
        peer.hold();
    });
    let refuses = FakeBalancer::start(|mut peer, _| {
        peer.next();
        peer.error(0, ErrorCode::Unauthorized, "the token is wrong");
        peer.hold();
    });
    let all = [&closes, &web, &refuses];
    let ClientError::NoBalancer(error) = builder(&all).connect().unwrap_err() else { panic!() };
    let failures: Vec<_> = error.attempts.iter().map(|attempt| &attempt.failure).collect();
    assert_eq!(failures[0], &ConnectFailure::Closed);
    assert!(matches!(failures[1], ConnectFailure::Protocol(_)), "{error}");
    let refused =
        ConnectFailure::Refused { code: ErrorCode::Unauthorized, message: "the token is wrong".into() };
    assert_eq!(failures[2], &refused);
    let short = builder(&[&silent]).connect_timeout(Duration::from_millis(50)).connect();
    assert!(short.unwrap_err().to_string().contains("did not greet within 50 ms"));
}

#[test]
fn the_connection_closes_with_the_last_client() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let balancer = FakeBalancer::start(move |mut peer, _| {
        peer.welcome();
        peer.hold();
        tell.lock().unwrap().send(()).unwrap();
    });
    let client = builder(&[&balancer]).connect().unwrap();
    let clone = client.clone();
    drop(client);
    assert!(clone.is_connected());
    let (done, outcome) = mpsc::channel();
    clone.task("echo").submit_with(move |result| done.send(result).unwrap()).unwrap();
    drop(clone);
    told.recv_timeout(PATIENCE).unwrap();
    assert_eq!(outcome.recv_timeout(PATIENCE).unwrap().unwrap_err().code, ErrorCode::ConnectionLost);
}

#[test]
fn garbage_ends_the_connection_with_an_error_and_no_panic() {
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        &[0, 0, 0, 12, 99, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1],
        &[0, 0, 0, 1, 1],
    ] {
        let garbage = garbage.to_vec();
        let balancer = FakeBalancer::start(move |mut peer, _| {
            peer.welcome();
            let (id, payload) = peer.next_task().unwrap();
            peer.next_task();
            // What stands before the garbage still counts.
            peer.result(id, &payload);
            peer.stream.write_all(&garbage).unwrap();
            peer.hold();
        });
        let client = builder(&[&balancer]).connect().unwrap();
        let (good, bad) = (client.submit("echo", "x").unwrap(), client.submit("echo", "y").unwrap());
        assert_eq!(good.wait().unwrap(), "x");
        let failure = bad.wait().unwrap_err();
        assert_eq!(failure.code, ErrorCode::ConnectionLost);
        assert!(failure.message.contains("not a frame"), "{failure}");
    }
}

#[test]
fn the_balancers_reason_for_ending_the_connection_is_told() {
    let balancer = FakeBalancer::start(|mut peer, _| {
        peer.welcome();
        peer.next_task();
        peer.error(0, ErrorCode::Overloaded, "too many connections");
    });
    let client = builder(&[&balancer]).connect().unwrap();
    let failure = client.submit("echo", "x").unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::ConnectionLost);
    assert!(failure.message.contains("overloaded: too many connections"), "{failure}");
}

#[test]
fn a_result_may_be_longer_than_what_the_balancer_takes_by_the_slack_of_its_own_fields() {
    const MAX_FRAME: u32 = 200_000;
    let result = |bytes: usize| {
        let balancer = FakeBalancer::start(move |mut peer, _| {
            peer.welcome_with(MAX_FRAME, 5_000, 15_000);
            let (id, _) = peer.next_task().unwrap();
            peer.result(id, &vec![7; bytes]);
            peer.hold();
        });
        builder(&[&balancer]).connect().unwrap().submit("large", "").unwrap().wait()
    };
    let longest = (MAX_FRAME + limits::RELAY_SLACK_BYTES) as usize - reparto_protocol::HEADER_BYTES;
    assert_eq!(result(longest).unwrap().len(), longest);
    let failure = result(longest + 1).unwrap_err();
    assert!(failure.message.contains("over the limit"), "{failure}");
}
