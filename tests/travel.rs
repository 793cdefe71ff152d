//! Foreground tasks that travel between balancers, with real engines and real processes: each gets one answer, from
//! wherever there is a worker, whoever is killed meanwhile.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use std::path::PathBuf;
use std::time::Duration;

use reparto_client::{Client, ErrorCode, TaskHandle};
use reparto_worker::{Task, Worker};
use support::sharing::Shared;
use support::{Balancer, PATIENCE, Process, folder, pid_from, runs, wait_until};

fn client(balancer: &Balancer) -> Client {
    Client::connect([balancer.clients.clone()]).unwrap()
}

fn submit(client: &Client, action: &str, payload: &str) -> TaskHandle {
    client.task(action).payload(payload.to_owned()).submit().unwrap()
}

/// A worker whose `work` takes ten minutes, and the file that names the process it runs in.
fn worker_that_takes_long(balancer: &Balancer) -> (Process, PathBuf) {
    let pid = folder().join("pid");
    let work = format!("work=echo $$ >'{}'; exec sleep 600", pid.display());
    (balancer.worker_with(&["--id", "luis", "--threads", "1", "--exec", &work]), pid)
}

#[test]
fn a_task_whose_action_has_no_worker_here_is_run_at_another_balancer() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let at_first = client(&first);
    let broken = "broken=echo it is out of paper >&2; exit 1";
    // Handed in before anybody could run it.
    let early = submit(&at_first, "upper", "early");
    let _worker = second.worker_with(&[
        "--id",
        "ana",
        "--threads",
        "4",
        "--builtin",
        "--exec",
        broken,
        "--exec",
        "cat=cat",
    ]);
    assert_eq!(early.wait().unwrap(), "EARLY");
    let many: Vec<_> =
        (0..500).map(|number| (submit(&at_first, "upper", &format!("t{number}")), number)).collect();
    for (handle, number) in many {
        assert_eq!(handle.wait().unwrap(), format!("T{number}"));
    }
    let every_byte: Vec<u8> = (0..=255).cycle().take(1 << 20).collect();
    let large = at_first.task("cat").payload(every_byte.clone()).submit().unwrap();
    assert_eq!(large.wait().unwrap(), every_byte);
    let failure = submit(&at_first, "broken", "x").wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::WorkerFailed);
    assert!(failure.message.contains("out of paper"), "{failure}");
    // What nobody offers anywhere waits as long as it may.
    let wait = at_first.task("nobody's").payload("x").wait_limit(Duration::from_millis(500));
    assert_eq!(wait.submit().unwrap().wait().unwrap_err().code, ErrorCode::Expired);
    let deadline = at_first.task("sleep").payload("60000").deadline(Duration::from_millis(500));
    assert_eq!(deadline.submit().unwrap().wait().unwrap_err().code, ErrorCode::Expired);
    wait_until("its worker is told", || {
        second.worker_status("ana").is_some_and(|worker| worker.in_flight == 0)
    });
    assert_eq!(first.status().totals.failed, 3);
}

#[test]
fn a_task_that_waits_here_goes_to_where_a_worker_is_free_and_comes_back_when_none_is() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let gate = folder().join("go");
    let hold = format!("hold=while [ ! -e '{}' ]; do sleep 0.01; done; cat", gate.display());
    let _here = first.worker_with(&["--id", "ana", "--threads", "1", "--exec", &hold]);
    let at_first = client(&first);
    let held = submit(&at_first, "hold", "held");
    first.wait_until_busy("ana");
    let there = second.worker_with(&["--id", "luis", "--threads", "1", "--exec", &hold]);
    let travels = submit(&at_first, "hold", "travels");
    second.wait_until_busy("luis");
    // Both are full now: this one waits here, or comes back if the other balancer had not yet said that it is full.
    let waits = submit(&at_first, "hold", "waits");
    std::thread::sleep(Duration::from_millis(500));
    wait_until("it waits here", || first.status().totals.queued == 1);
    // Its worker there is killed: that costs an attempt, and it is given again.
    drop(there);
    let there = second.worker_with(&["--id", "eva", "--threads", "1", "--exec", &hold]);
    second.wait_until_busy("eva");
    std::fs::write(&gate, "").unwrap();
    for (handle, result) in [(held, "held"), (travels, "travels"), (waits, "waits")] {
        assert_eq!(handle.wait().unwrap(), result);
    }
    drop(there);
    // Nobody is there any more but here.
    assert_eq!(submit(&at_first, "hold", "here").wait().unwrap(), "here");
}

#[test]
fn a_task_is_given_again_when_the_balancer_that_has_it_is_killed() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let at_first = client(&first);
    let says_that_it_runs = |task: &Task| {
        task.progress(1, 2);
        task.cancellation().wait_timeout(Duration::from_secs(600));
        Ok("never".into())
    };
    let there = Worker::builder().balancer(&second.workers).threads(2).action("work", says_that_it_runs);
    let there = there.build().unwrap();
    std::thread::spawn(move || there.run());
    let mut task = submit(&at_first, "work", "x");
    let mut once = at_first.task("work").payload("x").max_attempts(1).submit().unwrap();
    // Before that their lender might take them for tasks that nobody has taken, which cost nothing.
    for handle in [&mut task, &mut once] {
        handle.next_progress_timeout(PATIENCE).expect("both run there");
    }
    second.process.kill();
    // That costs an attempt, as a worker's loss does.
    let failure = once.wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::AttemptsExhausted, "{failure}");
    let _here = first.worker_with(&["--id", "ana", "--exec", "work=echo again"]);
    assert_eq!(task.wait().unwrap(), "again\n");
}

#[test]
fn a_task_comes_back_to_where_it_was_handed_in_when_rabbitmq_is_killed() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let at_first = client(&first);
    let gate = folder().join("go");
    let hold = format!("hold=while [ ! -e '{}' ]; do sleep 0.01; done; cat", gate.display());
    let _there = second.worker_with(&["--id", "luis", "--threads", "1", "--exec", &hold]);
    let task = submit(&at_first, "hold", "x");
    second.wait_until_busy("luis");
    shared.engines.kill("rabbitmq");
    let _here = first.worker_with(&["--id", "ana", "--exec", "hold=echo here"]);
    assert_eq!(task.wait().unwrap(), "here\n");
    shared.engines.up("rabbitmq");
    // What the other balancer still has of it is not wanted any more.
    std::fs::write(&gate, "").unwrap();
    wait_until("it has ended there", || {
        second.worker_status("luis").is_some_and(|worker| worker.in_flight == 0)
    });
    assert_eq!(first.status().totals.done, 1);
}

#[test]
fn a_client_that_leaves_cancels_what_has_travelled() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (_there, pid) = worker_that_takes_long(&second);
    let at_first = client(&first);
    let task = submit(&at_first, "work", "x");
    let running = pid_from(&pid);
    drop((task, at_first));
    wait_until("its worker has ended it", || !runs(running));
}

#[test]
fn a_handler_is_told_which_attempt_it_is_wherever_that_runs() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let third_time = "third=[ \"$REPARTO_ATTEMPT\" = 3 ] || exit 75; echo third";
    let _there = second.worker_with(&["--id", "luis", "--exec", third_time]);
    let at_first = client(&first);
    assert_eq!(submit(&at_first, "third", "x").wait().unwrap(), "third\n");
    let twice = at_first.task("third").payload("x").max_attempts(2).submit().unwrap();
    let failure = twice.wait().unwrap_err();
    assert_eq!(failure.code, ErrorCode::AttemptsExhausted);
    assert_eq!(failure.message.matches("used up").count(), 1, "{failure}");
}

#[test]
fn what_a_balancer_had_lent_is_ended_soon_after_it_was_killed() {
    let shared = Shared::start();
    let (first, second) = (shared.balancer(), shared.balancer());
    let (_there, pid) = worker_that_takes_long(&second);
    let at_first = client(&first);
    let _task = submit(&at_first, "work", "x");
    let running = pid_from(&pid);
    first.process.kill();
    // Nobody waits for it any more.
    wait_until("its worker has ended it", || !runs(running));
}
