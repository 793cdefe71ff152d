//! `reparto worker --exec`: shell commands as actions, their results, failures, limits and ends.
#![cfg(unix)]
#![allow(clippy::unwrap_used)]

mod support;

use rustix::process::Signal;
use support::{Balancer, folder, pid_from, run, runs, wait_until};

#[test]
fn lines_of_find_and_a_worker_of_xargs_wc_make_a_distributed_xargs() {
    let balancer = Balancer::start();
    let worker = |id| balancer.worker_with(&["--id", id, "--threads", "2", "--exec", "count=xargs wc -l"]);
    let _workers = [worker("one"), worker("two")];
    let folder = folder();
    let (mut names, mut counts) = (String::new(), String::new());
    for lines in 0..20 {
        let file = folder.join(format!("{lines}.txt"));
        std::fs::write(&file, "a line\n".repeat(lines)).unwrap();
        names += &format!("{}\n", file.display());
        counts += &format!("{lines} {}\n", file.display());
    }
    let result = balancer.submit_input(["count", "--lines", "-"], names).success_text();
    // Some systems' wc pads its numbers.
    let result: String = result.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    assert_eq!(result, counts);
}

#[test]
fn a_command_sees_its_payload_and_what_it_runs_for() {
    let balancer = Balancer::start();
    let command = r#"tell=printf '%s %s %s ' "$REPARTO_ACTION" "$REPARTO_ATTEMPT" "$REPARTO_KEY"; cat"#;
    let _worker = balancer.worker_with(&["--exec", command]);
    let result = balancer.submit(["tell", "the payload", "--key", "a key"]).success_text();
    assert_eq!(result, "tell 1 a key the payload");
}

#[test]
fn any_bytes_go_through_a_command_whatever_their_number() {
    let balancer = Balancer::start();
    let _worker = balancer.worker_with(&["--exec", "same=cat", "--exec", "blind=true"]);
    let payload: Vec<u8> =
        (0..2u32 << 20).map(|place| (place.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    assert!(balancer.submit_input(["same"], payload.clone()).success() == payload);
    // One that reads nothing of it succeeds as well.
    assert_eq!(balancer.submit_input(["blind"], payload).success(), b"");
}

#[test]
fn a_failed_command_tells_its_exit_code_and_the_end_of_its_standard_error() {
    let balancer = Balancer::start();
    let command = "fail=seq 1 10000 >&2; echo 'no such picture' >&2; exit 3";
    let _worker = balancer.worker_with(&["--exec", command]);
    let sentence = balancer.submit(["fail", ""]).failure(1);
    assert!(sentence.contains("worker_failed") && sentence.contains("exit code 3"), "{sentence}");
    assert!(sentence.contains("10000\nno such picture") && !sentence.contains("\n1000\n"), "{sentence}");
}

#[test]
fn a_command_that_is_not_there_is_a_failure_that_says_so() {
    let balancer = Balancer::start();
    let _worker = balancer.worker_with(&["--exec", "gone=no-such-command-anywhere"]);
    let sentence = balancer.submit(["gone", ""]).failure(1);
    assert!(sentence.contains("127") && sentence.contains("no-such-command-anywhere"), "{sentence}");
}

#[test]
fn exit_code_75_asks_for_another_attempt() {
    let balancer = Balancer::start();
    let flaky = "flaky=if [ $REPARTO_ATTEMPT -lt 3 ]; then exit 75; fi; printf 'attempt %s' $REPARTO_ATTEMPT";
    let _worker = balancer.worker_with(&["--exec", flaky, "--exec", "never=echo busy >&2; exit 75"]);
    assert_eq!(balancer.submit(["flaky", ""]).success_text(), "attempt 3");
    let sentence = balancer.submit(["never", ""]).failure(1);
    assert!(sentence.contains("attempts_exhausted") && sentence.contains("busy"), "{sentence}");
}

#[test]
fn a_timeout_kills_the_command_with_everything_it_started() {
    let balancer = Balancer::start();
    let file = folder().join("grandchild");
    let hang = format!("hang=sleep 600 & echo $! > '{}'; wait", file.display());
    let _worker =
        balancer.worker_with(&["--threads", "1", "--exec-timeout", "12s", "--exec", &hang, "--builtin"]);
    let submit = balancer.submitting(["hang", ""]);
    let grandchild = pid_from(&file);
    let sentence = submit.end().failure(1);
    assert!(sentence.contains("did not end within 12 s"), "{sentence}");
    wait_until("what it started is gone", || !runs(grandchild));
    assert_eq!(balancer.submit(["upper", "free"]).success_text(), "FREE");
}

#[test]
fn what_a_command_leaves_running_ends_with_it() {
    let balancer = Balancer::start();
    let file = folder().join("left");
    let leave = format!("leave=sleep 600 >/dev/null 2>&1 & echo $! > '{}'; printf gone", file.display());
    let _worker = balancer.worker_with(&["--exec", &leave]);
    assert_eq!(balancer.submit(["leave", ""]).success_text(), "gone");
    let left = pid_from(&file);
    wait_until("what it left is gone", || !runs(left));
}

#[test]
fn output_over_its_limit_stops_the_command() {
    let balancer = Balancer::start();
    let _worker = balancer.worker_with(&["--exec-max-output", "1MiB", "--exec", "flood=yes", "--builtin"]);
    let sentence = balancer.submit(["flood", ""]).failure(1);
    assert!(sentence.contains("1048576 bytes"), "{sentence}");
    assert_eq!(balancer.submit(["upper", "free"]).success_text(), "FREE");
}

#[test]
fn a_stopped_worker_leaves_no_command_behind() {
    let balancer = Balancer::start();
    let file = folder().join("pid");
    let long = format!("long=echo $$ > '{}'; sleep 600", file.display());
    let worker = balancer.worker_with(&["--grace", "100ms", "--exec", &long]);
    let _submit = balancer.submitting(["long", ""]);
    let shell = pid_from(&file);
    worker.signal(Signal::TERM);
    assert_eq!(worker.end().code, Some(0));
    wait_until("its command is gone", || !runs(shell));
}

#[test]
fn without_builtin_only_the_commands_are_offered_and_with_it_both() {
    let balancer = Balancer::start();
    let _plain = balancer.worker_with(&["--id", "plain", "--exec", "same=cat"]);
    let _both = balancer.worker_with(&["--id", "both", "--exec", "same=cat", "--builtin"]);
    assert_eq!(balancer.worker_status("plain").unwrap().actions, ["same"]);
    let both = balancer.worker_status("both").unwrap().actions;
    assert!(
        both.iter().any(|action| action == "same") && both.iter().any(|action| action == "upper"),
        "{both:?}"
    );
    let sentence = run(["worker", "--exec", "same=cat", "--exec", "same=wc"]).failure(2);
    assert!(sentence.contains("'same' twice"), "{sentence}");
}
