//! Programs that know only AMQP: they publish tasks as JSON and get their outcomes, with real engines and real processes.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use amiquip::AmqpProperties;
use reparto_client::{Client, ErrorCode, Fetched};
use serde_json::{Value, json};
use support::amqp::Program;
use support::sharing::Shared;
use support::{PATIENCE, folder, wait_until};

fn properties() -> AmqpProperties {
    AmqpProperties::default().with_content_type("application/json".into())
}

fn replying_to(queue: &str, correlation: &str) -> AmqpProperties {
    properties().with_reply_to(queue.into()).with_correlation_id(correlation.into())
}

/// The next answer in a queue: its correlation id, and its JSON.
fn answer(program: &Program, consumer: &amiquip::Consumer<'_>) -> (String, Value) {
    let (body, properties) = program.next(consumer);
    let answer = serde_json::from_str(&body).unwrap_or_else(|error| panic!("{body}: {error}"));
    (properties.correlation_id().clone().unwrap_or_default(), answer)
}

#[test]
fn tasks_that_any_program_publishes_run_and_their_outcomes_come_to_where_it_says() {
    let shared = Shared::start();
    let program = Program::connect(shared.engines.rabbitmq_url());
    // Somebody has published before any balancer was there.
    program.declare("orders");
    program.declare("answers");
    program.publish(
        "orders",
        r#"{"id": 1, "action": "upper", "payload": "hola"}"#,
        replying_to("answers", "one"),
    );
    let balancer = shared.balancer_with(&["--amqp-queue", "orders"]);
    let broken = "broken=echo it is out of paper >&2; exit 1";
    let bytes = "bytes=printf '\\377\\000'";
    let _worker = balancer.worker_with(&[
        "--id",
        "ana",
        "--threads",
        "2",
        "--builtin",
        "--exec",
        broken,
        "--exec",
        bytes,
    ]);
    let answers = program.consume("answers");
    let (correlation, first) = answer(&program, &answers);
    let task_id = first["task_id"].as_str().unwrap().to_owned();
    assert_eq!(correlation, "one");
    assert_eq!(first, json!({"id": 1, "task_id": task_id, "ok": true, "data": "HOLA"}));
    assert_eq!(
        shared.psql(&format!("SELECT state, convert_from(result, 'UTF8') FROM tasks WHERE id = '{task_id}'")),
        "3|HOLA"
    );

    program.publish("orders", r#"{"id": "b", "action": "broken"}"#, replying_to("answers", "two"));
    let (correlation, failed) = answer(&program, &answers);
    assert_eq!((&*correlation, &failed["id"], &failed["ok"]), ("two", &json!("b"), &json!(false)));
    assert_eq!(failed["code"], "worker_failed");
    assert!(failed["error"].as_str().unwrap().contains("out of paper"), "{failed}");

    let options = r#"{"action": "bytes", "priority": 9, "attempts": 1, "delay": "300ms", "deadline": "60s"}"#;
    program.publish("orders", options, replying_to("answers", "three"));
    let (correlation, delayed) = answer(&program, &answers);
    assert_eq!((&*correlation, &delayed["data_base64"]), ("three", &json!("/wA=")));

    let late = r#"{"action": "nobody offers this", "deadline": "100ms"}"#;
    program.publish("orders", late, replying_to("answers", "four"));
    let (correlation, expired) = answer(&program, &answers);
    assert_eq!((&*correlation, &expired["code"]), ("four", &json!("expired")));

    // A queue to reply to that is not there keeps nobody from their work, and nothing is owed in the end.
    program.publish("orders", r#"{"action": "upper", "payload": "x"}"#, replying_to("nowhere", "five"));
    program.publish("orders", r#"{"action": "upper", "payload": "y"}"#, replying_to("answers", "six"));
    assert_eq!(answer(&program, &answers).1["data"], "Y");
    wait_until("nothing is owed", || {
        shared.psql("SELECT count(*) FROM tasks WHERE reply IS NOT NULL") == "0"
    });
    assert_eq!(shared.psql("SELECT count(*) FROM tasks WHERE state <= 2"), "0");
}

#[test]
fn a_body_that_cannot_be_read_goes_to_the_dead_letters_with_the_reason_and_blocks_nobody() {
    let shared = Shared::start();
    let program = Program::connect(shared.engines.rabbitmq_url());
    let balancer = shared.balancer_with(&["--amqp-queue", "orders", "--amqp-queue", "others"]);
    let _worker = balancer.worker("ana");
    for queue in ["orders", "others", "answers"] {
        program.declare(queue);
    }
    for body in ["no JSON", r#"{"payload": "x"}"#, r#"{"action": "upper", "priority": 77}"#] {
        program.publish("orders", body, replying_to("answers", "dead").with_message_id(body.into()));
    }
    let answers = program.consume("answers");
    for queue in ["orders", "others"] {
        program.publish(
            queue,
            format!(r#"{{"action": "upper", "payload": "{queue}"}}"#),
            replying_to("answers", queue),
        );
        assert_eq!(answer(&program, &answers).1["data"], queue.to_uppercase());
    }
    program.declare("orders.dead");
    let dead = program.consume("orders.dead");
    for (body, reason) in [
        ("no JSON", "it is no task in JSON"),
        (r#"{"payload": "x"}"#, "it names no action"),
        (r#"{"action": "upper", "priority": 77}"#, "its priority is 77"),
    ] {
        let (found, properties) = program.next(&dead);
        assert_eq!((&*found, properties.message_id().as_deref()), (body, Some(body)));
        let header = format!("{:?}", properties.headers().as_ref().unwrap().get("x-reparto-reason"));
        assert!(header.contains(reason), "{header}");
        assert_eq!(properties.reply_to().as_deref(), Some("answers"));
    }
    assert_eq!(program.waiting("orders"), 0);
}

#[test]
fn a_message_that_comes_twice_with_one_id_runs_once() {
    let shared = Shared::start();
    let program = Program::connect(shared.engines.rabbitmq_url());
    program.declare("orders");
    program.declare("answers");
    let ran = folder().join("ran");
    let (first, second) = (
        shared.balancer_with(&["--amqp-queue", "orders"]),
        shared.balancer_with(&["--amqp-queue", "orders"]),
    );
    let note = format!("note=echo ran >>'{}'; cat", ran.display());
    let _workers = [&first, &second].map(|balancer| balancer.worker_with(&["--id", "ana", "--exec", &note]));
    let answers = program.consume("answers");
    for _ in 0..20 {
        let message = replying_to("answers", "c").with_message_id("invoice-7".into());
        program.publish("orders", r#"{"action": "note", "payload": "x"}"#, message);
    }
    program.publish("orders", r#"{"action": "note", "payload": "last"}"#, replying_to("answers", "last"));
    let mut told = vec![answer(&program, &answers).0, answer(&program, &answers).0];
    told.sort();
    assert_eq!(told, ["c", "last"]);
    wait_until("all are taken", || shared.psql("SELECT count(*) FROM tasks WHERE state = 3") == "2");
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(std::fs::read_to_string(ran).unwrap(), "ran\nran\n");
    assert_eq!(program.waiting("orders"), 0);
}

#[test]
fn outcomes_are_told_whichever_balancer_is_killed_and_though_rabbitmq_was_away() {
    let shared = Shared::start();
    let program = Program::connect(shared.engines.rabbitmq_url());
    program.declare("orders");
    program.declare("answers");
    let (first, second) = (
        shared.balancer_with(&["--amqp-queue", "orders"]),
        shared.balancer_with(&["--amqp-queue", "orders"]),
    );
    let mut workers = vec![first.worker("ana"), second.worker("luis")];
    for number in 0..400 {
        let id = format!("m{number}");
        let task = json!({"id": number, "action": "upper", "payload": id, "attempts": 20});
        program.publish("orders", task.to_string(), replying_to("answers", &id).with_message_id(id.clone()));
        if number == 200 {
            workers.remove(0).kill();
        }
    }
    first.process.kill();
    drop(program);
    shared.engines.kill("rabbitmq");
    std::thread::sleep(Duration::from_secs(1));
    shared.engines.up("rabbitmq");

    let program = Program::connect(shared.engines.rabbitmq_url());
    let answers = program.consume("answers");
    let mut missing: std::collections::HashSet<String> =
        (0..400).map(|number| format!("m{number}")).collect();
    while !missing.is_empty() {
        let (correlation, answer) = answer(&program, &answers);
        assert_eq!(answer["data"], correlation.to_uppercase(), "{answer}");
        assert_eq!(format!("m{}", answer["id"]), correlation);
        // It may be told twice, when whoever told it died before it could note that.
        missing.remove(&correlation);
    }
    assert_eq!(shared.psql("SELECT count(*) FROM tasks"), "400");
    wait_until("nothing is owed", || {
        shared.psql("SELECT count(*) FROM tasks WHERE reply IS NOT NULL") == "0"
    });
}

/// Answers tasks of a queue, as a program would that knows only AMQP, until nobody wants its answers any more.
fn serve(url: String, queue: &'static str, answer: impl Fn(&Value) -> Option<Value> + Send + 'static) {
    std::thread::spawn(move || {
        let program = Program::connect(&url);
        program.declare(queue);
        let tasks = program.consume(queue);
        loop {
            let delivery = support::amqp::delivery(&tasks);
            let task = serde_json::from_slice(&delivery.body).unwrap();
            if let (Some(answer), Some(to)) = (answer(&task), delivery.properties.reply_to()) {
                let mut properties = properties();
                if let Some(correlation) = delivery.properties.correlation_id() {
                    properties = properties.with_correlation_id(correlation.clone());
                }
                program.publish(to, answer.to_string(), properties);
            }
            program.acknowledge(delivery);
        }
    });
}

#[test]
fn workers_that_know_only_amqp_run_foreground_and_background_tasks() {
    let shared = Shared::start();
    let url = shared.engines.rabbitmq_url().to_owned();
    let tried = std::sync::atomic::AtomicU32::new(0);
    serve(url, "images", move |task| {
        assert_eq!(task["action"], "resize");
        Some(match task["payload"].as_str() {
            Some("broken") => json!({"id": task["id"], "ok": false, "error": "no such image"}),
            Some("busy") if tried.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0 => {
                json!({"id": task["id"], "ok": false, "error": "out of memory", "retry": true})
            }
            Some("nonsense") => json!("hm"),
            Some(text) => json!({"id": task["id"], "ok": true, "data": text.to_uppercase()}),
            None => json!({"ok": true, "data_base64": task["payload_base64"]}),
        })
    });
    let flags = ["--amqp-worker", "resize=images?in_flight=32"];
    let (first, second) = (shared.balancer_with(&flags), shared.balancer_with(&flags));
    let client = Client::connect([first.clients.clone()]).unwrap();
    let run = |payload: &[u8]| client.task("resize").payload(payload.to_vec()).submit().unwrap().wait();
    assert_eq!(&run(b"hola").unwrap()[..], b"HOLA");
    assert_eq!(&run(b"\xff\0\xfe").unwrap()[..], b"\xff\0\xfe");
    assert_eq!(&run(b"busy").unwrap()[..], b"BUSY");
    let failure = run(b"broken").unwrap_err();
    assert_eq!((failure.code, &*failure.message), (ErrorCode::WorkerFailed, "no such image"));
    let failure = run(b"nonsense").unwrap_err();
    assert!(failure.message.contains("cannot be read"), "{failure}");
    let worker = first.worker_status("amqp:resize=images").unwrap();
    assert_eq!((worker.threads, worker.in_flight), (32, 0));

    let many: Vec<_> = (0..300)
        .map(|number| client.task("resize").payload(format!("f{number}")).submit().unwrap())
        .collect();
    for (number, handle) in many.into_iter().enumerate() {
        assert_eq!(handle.wait().unwrap(), format!("F{number}"));
    }
    let accepted: Vec<_> = (0..300)
        .map(|number| {
            let task = client.task("resize").payload(format!("b{number}"));
            task.submit_background().unwrap()
        })
        .collect();
    let at_second = Client::connect([second.clients.clone()]).unwrap();
    for (number, reply) in accepted.into_iter().enumerate() {
        let task = reply.wait().unwrap().task_id;
        match at_second.fetch(task, PATIENCE).unwrap().wait() {
            Ok(Fetched::Ended(Ok(result))) => assert_eq!(result, format!("B{number}")),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_queue_without_answers_ends_a_task_once_it_has_it_and_an_answer_that_never_comes_costs_an_attempt() {
    let shared = Shared::start();
    let program = Program::connect(shared.engines.rabbitmq_url());
    program.declare("silent");
    let flags = ["--amqp-worker", "mail=mails?reply=no", "--amqp-worker", "slow=silent?limit=300ms"];
    let balancer = shared.balancer_with(&flags);
    let client = Client::connect([balancer.clients.clone()]).unwrap();
    let result = client.task("mail").payload("dear ana").submit().unwrap().wait().unwrap();
    assert!(result.is_empty());
    let mails = program.consume("mails");
    let (body, properties) = program.next(&mails);
    let mail: Value = serde_json::from_str(&body).unwrap();
    assert_eq!((&mail["action"], &mail["payload"]), (&json!("mail"), &json!("dear ana")));
    assert_eq!(
        (properties.reply_to(), properties.content_type().as_deref()),
        (&None, Some("application/json"))
    );

    let failure = client.task("slow").payload("x").max_attempts(2).submit().unwrap().wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::AttemptsExhausted, "{failure}");
    assert!(failure.message.contains("no answer has come from the queue 'silent'"), "{failure}");
    // The limit counts from the moment when a message is handed over, so the last may be on its way yet.
    wait_until("both stand in the queue", || program.waiting("silent") == 2);
    let silent = program.consume("silent");
    let attempts: Vec<Value> = (0..2)
        .map(|_| serde_json::from_str::<Value>(&program.next(&silent).0).unwrap()["attempt"].clone())
        .collect();
    assert_eq!(attempts, [1, 2]);
    // A deadline ends it sooner, and takes its message out of the queue.
    let late = client.task("slow").payload("x").deadline(Duration::from_millis(100)).submit().unwrap();
    assert_eq!(late.wait().unwrap_err().code, ErrorCode::Expired);
    assert_eq!(balancer.worker_status("amqp:slow=silent").unwrap().in_flight, 0);
}

#[test]
fn tasks_for_such_workers_go_on_after_rabbitmq_was_away() {
    let shared = Shared::start();
    let url = shared.engines.rabbitmq_url().to_owned();
    let balancer = shared.balancer_with(&["--amqp-worker", "shout=shouts"]);
    let client = Client::connect([balancer.clients.clone()]).unwrap();
    shared.engines.kill("rabbitmq");
    let waiting: Vec<_> =
        (0..50).map(|n| client.task("shout").payload(format!("f{n}")).submit().unwrap()).collect();
    std::thread::sleep(Duration::from_secs(1));
    shared.engines.up("rabbitmq");
    serve(url, "shouts", |task| {
        Some(json!({"ok": true, "data": task["payload"].as_str().unwrap().to_uppercase()}))
    });
    for (number, handle) in waiting.into_iter().enumerate() {
        assert_eq!(handle.wait().unwrap(), format!("F{number}"));
    }
}
