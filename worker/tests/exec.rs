//! Shell commands as handlers, with the real shell.
#![cfg(unix)]
#![allow(clippy::unwrap_used)] // A panic is a failed test, in helpers too.

mod support;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use reparto_protocol::{AssignTask, Message, Outcome};
use reparto_worker::exec::Exec;
use reparto_worker::{Task, TaskError};
use support::{Balancer, Running, wait_until};

fn run(command: &str, payload: impl Into<Bytes>) -> Result<Bytes, TaskError> {
    Exec::new(command).run(&Task::detached("run", payload))
}

fn sentence(result: Result<Bytes, TaskError>) -> String {
    match result {
        Err(TaskError::Final { message, .. }) => message,
        other => panic!("a final error should come, not {other:?}"),
    }
}

/// A folder of the test's own, which goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("reparto-{test}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Folder(path)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The process whose number stands in a file, once it does.
fn pid_in(file: &Path) -> rustix::process::Pid {
    let read = || std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse::<i32>().ok());
    wait_until("the command wrote its process' number", || read().is_some());
    rustix::process::Pid::from_raw(read().unwrap()).unwrap()
}

/// Gone, or a zombie whose parent has not looked yet.
fn is_gone(pid: rustix::process::Pid) -> bool {
    if rustix::process::test_kill_process(pid).is_err() {
        return true;
    }
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.is_ok_and(|stat| stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[test]
fn payload_goes_in_and_standard_output_comes_back() {
    assert_eq!(run("tr a-z A-Z", "hola").unwrap(), "HOLA");
}

#[test]
fn eight_mebibytes_pass_through_cat_unchanged() {
    let payload: Bytes =
        (0..8 * 1024 * 1024u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(run("cat", payload.clone()).unwrap() == payload);
}

#[test]
fn a_command_that_does_not_read_its_input_is_no_error() {
    assert_eq!(run("echo done", vec![b'x'; 8 * 1024 * 1024]).unwrap(), "done\n");
}

#[test]
fn a_failure_carries_the_exit_code_the_end_of_standard_error_and_the_output() {
    let result = run("echo partial; echo why >&2; exit 42", "");
    let Err(TaskError::Final { message, payload }) = result else { panic!("it should fail") };
    assert_eq!(message, "the command failed with exit code 42: why");
    assert_eq!(payload, "partial\n");
}

#[test]
fn only_the_last_two_kibibytes_of_standard_error_are_kept() {
    let message = sentence(run("yes noise | head -c 1000000 >&2; echo THE END >&2; exit 1", ""));
    assert!(message.ends_with("THE END"), "{message}");
    assert!(message.len() < 2200, "{} bytes", message.len());
}

#[test]
fn exit_codes_with_a_meaning_say_it() {
    assert!(sentence(run("no-such-command-here", "")).contains("exit code 127 (command not found)"));
    assert!(sentence(run("/", "")).contains("exit code 126 (found, but it cannot be executed)"));
    assert!(sentence(run("kill -9 $$", "")).contains("signal 9, SIGKILL"));
    assert!(sentence(run("exit 137", "")).contains("exit code 137 (as shells say of signal 9, SIGKILL"));
}

#[test]
fn exit_code_75_asks_for_another_attempt() {
    let Err(TaskError::Retryable { message, .. }) = run("echo busy >&2; exit 75", "") else {
        panic!("it should be retryable")
    };
    assert!(message.ends_with(": busy"), "{message}");
}

#[test]
fn output_over_its_bound_fails_and_the_command_is_ended() {
    let exec = Exec::new("yes").max_output_bytes(100_000);
    let message = sentence(exec.run(&Task::detached("yes", "")));
    assert_eq!(message, "the command wrote more than 100000 bytes and was stopped");
    let exact = Exec::new("head -c 1000 /dev/zero").max_output_bytes(1000);
    assert_eq!(exact.run(&Task::detached("zeros", "")).unwrap().len(), 1000);
}

#[test]
fn a_time_out_ends_the_command_and_all_that_it_started() {
    let folder = Folder::new("time-out");
    let file = folder.file("grandchild");
    // A grandchild that ignores SIGTERM and holds no pipe.
    let command = format!(
        "sh -c 'trap \"\" TERM; echo $$ > {0}.new; mv {0}.new {0}; while :; do sleep 1; done' >/dev/null 2>&1 & \
         while ! [ -e {0} ]; do sleep 0.01; done; echo started >&2; sleep 600",
        file.display()
    );
    let exec = Exec::new(command).timeout(Some(Duration::from_secs(12)));
    let message = sentence(exec.run(&Task::detached("hang", "")));
    assert!(message.starts_with("the command did not end within 12 s and was stopped"), "{message}");
    let grandchild = pid_in(&file);
    wait_until("the grandchild is gone", || is_gone(grandchild));
}

#[test]
fn a_time_out_says_how_long_the_command_had() {
    let exec = Exec::new("echo slowly >&2; sleep 600").timeout(Some(Duration::from_millis(500)));
    let message = sentence(exec.run(&Task::detached("hang", "")));
    assert!(message.starts_with("the command did not end within 0.5 s and was stopped"), "{message}");
}

#[test]
fn a_command_that_ignores_sigterm_is_killed_after_two_seconds() {
    let folder = Folder::new("ignores");
    let balancer = Balancer::start();
    let exec = Exec::new(
        r#"trap '' TERM; p=$(cat); echo $$ > "$p.new"; mv "$p.new" "$p"; while :; do sleep 1; done"#,
    );
    let _worker = Running::start(balancer.worker().action("hang", move |task: &Task| exec.run(task)));
    let mut connection = balancer.accept();
    let file = folder.file("running");
    connection.assign(1, "hang", file.to_str().unwrap());
    let pid = pid_in(&file);
    let began = Instant::now();
    connection.cancel(1, false);
    assert_eq!(connection.answer().message, "cancelled");
    assert!(began.elapsed() >= Duration::from_secs(2), "it had its time to end by itself");
    assert!(is_gone(pid));
}

#[test]
fn what_a_command_leaves_behind_does_not_hold_its_task() {
    let folder = Folder::new("left-over");
    let file = folder.file("left-over");
    let command = format!("sleep 600 & echo $! > {}; echo done", file.display());
    assert_eq!(run(&command, "").unwrap(), "done\n");
    let left = pid_in(&file);
    wait_until("what was left is gone", || is_gone(left));
}

#[test]
fn the_environment_says_what_the_task_is() {
    let balancer = Balancer::start();
    let exec = Exec::new(r#"printf '%s %s %s' "$REPARTO_ACTION" "$REPARTO_ATTEMPT" "${REPARTO_KEY-none}""#);
    let _worker = Running::start(balancer.worker().action("env", move |task: &Task| exec.run(task)));
    let mut connection = balancer.accept();
    for (key, seen) in [(Some(&b"k 1"[..]), "env 2 k 1"), (None, "env 2 none"), (Some(b"\0"), "env 2 none")] {
        connection.send(&Message::AssignTask(AssignTask {
            id: 1,
            action: "env",
            attempt: 2,
            deadline_ms: None,
            key,
            task_id: None,
            held: false,
            payload: b"",
        }));
        assert_eq!(connection.answer().payload, seen);
    }
}

#[test]
fn a_cancel_and_a_lost_balancer_end_the_command() {
    let folder = Folder::new("cancel");
    let balancer = Balancer::start();
    let exec = Exec::new(r#"p=$(cat); echo $$ > "$p.new"; mv "$p.new" "$p"; sleep 600; :"#);
    let _worker = Running::start(balancer.worker().action("hang", move |task: &Task| exec.run(task)));
    let mut connection = balancer.accept();
    let (first, second) = (folder.file("first"), folder.file("second"));
    connection.assign(1, "hang", first.to_str().unwrap());
    let pid = pid_in(&first);
    connection.cancel(1, false);
    let answer = connection.answer();
    assert_eq!((answer.outcome, answer.message.as_str()), (Outcome::Failed, "cancelled"));
    wait_until("the cancelled command is gone", || is_gone(pid));

    connection.assign(2, "hang", second.to_str().unwrap());
    let pid = pid_in(&second);
    drop(connection);
    wait_until("the lost balancer's command is gone", || is_gone(pid));
}

#[test]
fn stopping_past_the_grace_ends_the_command_and_the_task_is_tried_elsewhere() {
    let folder = Folder::new("stop");
    let balancer = Balancer::start();
    let exec = Exec::new(r#"p=$(cat); echo $$ > "$p.new"; mv "$p.new" "$p"; sleep 600; :"#);
    let mut worker = Running::start(balancer.worker().action("hang", move |task: &Task| exec.run(task)));
    let mut connection = balancer.accept();
    let file = folder.file("running");
    connection.assign(1, "hang", file.to_str().unwrap());
    let pid = pid_in(&file);
    worker.handle.stop(Duration::from_millis(50));
    let (request, _) = connection.drain();
    connection.ack(request);
    assert_eq!(connection.answer().outcome, Outcome::Retry);
    drop(connection);
    worker.join();
    assert!(is_gone(pid));
}

#[test]
fn a_task_past_its_deadline_ends_its_command() {
    let balancer = Balancer::start();
    let exec = Exec::new("sleep 600");
    let _worker = Running::start(balancer.worker().action("hang", move |task: &Task| exec.run(task)));
    let mut connection = balancer.accept();
    let answer = loop {
        connection.send(&Message::AssignTask(AssignTask {
            id: 1,
            action: "hang",
            attempt: 1,
            deadline_ms: Some(500),
            key: None,
            task_id: None,
            held: false,
            payload: b"",
        }));
        let answer = connection.answer();
        // The machine may have stood still before it began.
        if answer.outcome != Outcome::NotRun {
            break answer;
        }
    };
    assert_eq!(answer.outcome, Outcome::Failed);
    assert!(answer.message.starts_with("expired"), "{}", answer.message);
}
