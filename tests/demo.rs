//! `reparto demo` in a pipe: it ends well, says so in its last line, and gives its summary to programs too.

use std::process::{Command, Output};

fn demo(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_reparto"))
        .arg("demo")
        .args(arguments)
        .output()
        .expect("the program was built for this test")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("the demo writes UTF-8")
}

#[test]
fn the_demo_kills_a_worker_and_ends_with_nothing_lost() {
    let output = demo(&["--tasks", "600"]);
    let (summary, story) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{summary}\n{story}");
    let lines: Vec<&str> = summary.lines().collect();
    assert_eq!(&lines[lines.len() - 2..], ["duplicated 0 wrong 0", "lost 0"], "{summary}");
    assert_eq!(summary.matches("until it was killed").count(), 1, "{summary}");
    for worker in ["worker-1", "worker-2", "worker-3"] {
        assert!(lines.iter().any(|line| line.starts_with(worker)), "{summary}");
    }
    assert!(story.contains("is killed (SIGKILL)"), "{story}");
    assert!(!story.contains('\u{1b}'), "a pipe gets no escape sequences: {story:?}");
}

#[test]
fn the_summary_as_json_accounts_for_every_task() {
    let output = demo(&["--tasks", "600", "--workers", "2", "--seed", "7", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    for count in ["lost", "duplicated", "wrong"] {
        assert_eq!(summary[count], 0, "{summary}");
    }
    let workers = summary["workers"].as_array().expect("a list");
    assert_eq!(workers.len(), 2);
    assert_eq!(workers.iter().filter(|worker| worker["killed"] == true).count(), 1, "{summary}");
    let done: u64 = workers.iter().filter_map(|worker| worker["done"].as_u64()).sum();
    assert_eq!((done, summary["latency_ms"]["tasks"].as_u64()), (600, Some(600)), "{summary}");
    // How many depends on what the killed worker had time to answer.
    assert!(summary["reassigned"].is_u64(), "{summary}");
}

#[test]
fn in_the_background_the_balancer_is_killed_and_every_result_is_fetched() {
    let output = demo(&["--background", "--tasks", "400", "--workers", "2", "--json"]);
    let story = text(&output.stderr);
    assert!(output.status.success(), "{}\n{story}", text(&output.stdout));
    let summary: serde_json::Value = serde_json::from_slice(&output.stdout).expect("one JSON object");
    for count in ["accepted", "fetched", "fetched_again"] {
        assert_eq!(summary[count], 400, "{count}: {summary}\n{story}");
    }
    for count in ["lost", "doubled", "wrong"] {
        assert_eq!(summary[count], 0, "{count}: {summary}\n{story}");
    }
    assert_eq!(summary["kills"], 2);
    assert!(story.contains("is killed (SIGKILL)") && story.contains("is back"), "{story}");
    let output = demo(&["--background", "--tasks", "100", "--workers", "2"]);
    assert!(text(&output.stdout).ends_with("doubled 0 wrong 0\nlost 0\n"), "{}", text(&output.stdout));
}

#[test]
fn where_there_are_no_files_the_digests_are_of_made_up_data() {
    let folder = std::env::temp_dir().join(format!("reparto-demo-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder for the test");
    let output = Command::new(env!("CARGO_BIN_EXE_reparto"))
        .args(["demo", "--tasks", "100"])
        .current_dir(&folder)
        .output()
        .expect("the program was built for this test");
    let _ = std::fs::remove_dir(&folder);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("made-up data"), "{}", text(&output.stderr));
}

#[test]
fn settings_that_cannot_be_are_refused_with_their_range() {
    for (flag, value) in [("--workers", "1"), ("--tasks", "0")] {
        let output = demo(&[flag, value]);
        assert_eq!(output.status.code(), Some(2));
        assert!(text(&output.stderr).contains(flag) && text(&output.stderr).contains(".."));
    }
}
