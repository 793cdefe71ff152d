//! The dialect by bytes alone: what comes in as packets and text, what goes out.

use bytes::{Bytes, BytesMut};
use reparto_protocol::{ErrorCode, TaskState};

use super::packet::{HEADER_BYTES, Kind};
use super::*;
use crate::background::Ask;
use crate::dialect::{Answer, Context, Output, OwnedEvent, Refusal, Step};
use crate::scheduler::{
    Assignment, Config, Effect, Event, Finish, Payload, Peer, Policy, ProgressKind, Pull, Pulled, Scheduler,
    Standing, StoreAnswer, Submission, Time,
};

const PEER: Peer = Peer { index: 2, generation: 1 };

fn context() -> Context {
    let address = ([127, 0, 0, 1], 1).into();
    Context {
        clients: address,
        workers: address,
        max_frame_bytes: 1 << 20,
        heartbeat: std::time::Duration::from_secs(5),
        silence: std::time::Duration::from_secs(15),
        policy: Policy::default(),
        lines_action: "default".into(),
        has_store: true,
        gearman: Arc::new(Shared::new("lap")),
    }
}

fn session() -> Session {
    Session::new(&context().gearman, None)
}

fn request(kind: Kind, data: &[u8]) -> Vec<u8> {
    let size = u32::try_from(data.len()).expect("short");
    [&b"\0REQ"[..], &(kind as u32).to_be_bytes(), &size.to_be_bytes(), data].concat()
}

/// What packets ask for, in words. A packet that makes the peer known is taken twice, as the reactor does.
fn says(session: &mut Session, wire: &[u8]) -> Vec<String> {
    says_of_each(session, wire, Session::decode)
}

type Decode = for<'a> fn(&mut Session, &Context, Peer, &'a Bytes, &mut usize) -> Result<Step<'a>, Refusal>;

fn says_of_each(session: &mut Session, wire: &[u8], decode: Decode) -> Vec<String> {
    let wire = Bytes::copy_from_slice(wire);
    let (mut from, mut said) = (0, Vec::new());
    let context = context();
    while from < wire.len() {
        match decode(session, &context, PEER, &wire, &mut from) {
            Ok(Step::Jobs(mut jobs)) => {
                while let Some(event) = jobs.next_event(PEER) {
                    said.push(in_words(Step::Event(event)));
                }
                from = jobs.at();
                session.jobs_taken(&jobs);
            }
            Ok(Step::Grabs(mut grabs)) => {
                while let Some(event) = grabs.next_event(PEER) {
                    said.push(in_words(Step::Event(event)));
                }
                from = grabs.at();
            }
            Ok(Step::JobResults(mut results)) => {
                while let Some(event) = results.next_event(PEER) {
                    said.push(in_words(Step::Event(event)));
                }
                from = results.at();
                session.results_taken(results);
            }
            Ok(Step::Incomplete) => {
                said.push("incomplete".into());
                break;
            }
            Ok(step) => said.push(in_words(step)),
            Err(Refusal { code, message }) => {
                said.push(format!("refused: {code} {message}"));
                break;
            }
        }
    }
    said
}

fn in_words(step: Step<'_>) -> String {
    match step {
        Step::Nothing => "nothing".into(),
        Step::Event(Event::ClientJoined { .. }) => "a client".into(),
        Step::Event(Event::PullerJoined { .. }) => "a worker".into(),
        Step::Event(Event::Submit { task, .. }) => {
            assert!(task.announced && task.wait == Some(std::time::Duration::MAX));
            assert_eq!(handle::connection_of(task.id), Some(PEER.index));
            let (key, payload) = (task.key.escape_ascii(), task.payload.as_slice().escape_ascii());
            format!("submit {} '{key}' {} '{payload}'", task.action, task.priority)
        }
        Step::Event(Event::Pull { pull, .. }) => format!("{pull:?}"),
        Step::Event(Event::Finished { assignment, finish, payload, .. }) => {
            format!("{finish:?} {} {payload:?}", assignment.0)
        }
        Step::Event(Event::Progress { assignment, kind, done, total, payload, .. }) => {
            format!("{kind:?} {} {done}/{total} {payload:?}", assignment.0)
        }
        Step::Owned(owned) => match *owned {
            OwnedEvent::Submit(task) => {
                assert!(task.announced);
                format!("submit {} with a key of {} bytes {:?}", task.action, task.key.len(), task.payload)
            }
            other => format!("{other:?}"),
        },
        Step::Ask(Ask::Submit(task)) => format!(
            "keep {} '{}' {} {:?} at {:?}",
            task.action,
            task.key.escape_ascii(),
            task.priority,
            task.payload,
            task.start_at_ms
        ),
        Step::Ask(ask) => format!("{ask:?}"),
        Step::Answer(Answer::Raw(bytes), None) => read_back(&bytes).join(", "),
        Step::Answer(Answer::Question(question), None) => format!("{question:?}"),
        other => panic!("{other:?}"),
    }
}

/// Responses, in words.
fn read_back(mut bytes: &[u8]) -> Vec<String> {
    let mut seen = Vec::new();
    while let Some([0, b'R', b'E', b'S', k0, k1, k2, k3, s0, s1, s2, s3]) =
        bytes.first_chunk::<HEADER_BYTES>().copied()
    {
        let kind = Kind::of(u32::from_be_bytes([k0, k1, k2, k3])).expect("a kind");
        let size = u32::from_be_bytes([s0, s1, s2, s3]) as usize;
        let data = &bytes[HEADER_BYTES..HEADER_BYTES + size];
        seen.push(format!("{} {}", kind.name(), data.escape_ascii()).trim_end().replace("\\x00", "|"));
        bytes = &bytes[HEADER_BYTES + size..];
    }
    if !bytes.is_empty() {
        seen.push(String::from_utf8_lossy(bytes).into_owned());
    }
    seen
}

fn written(write: impl FnOnce(&mut Output)) -> Vec<String> {
    let mut output = Output::default();
    write(&mut output);
    read_back(output.buffer())
}

#[test]
fn clients_packets_say_what_they_ask_for() {
    let mut session = session();
    for (kind, data, expected) in [
        (Kind::SubmitJob, &b"reverse\0\0test"[..], &["a client", "submit reverse '' 4 'test'"][..]),
        (Kind::SubmitJob, b"reverse\0u1\0a\0b", &["submit reverse 'u1' 4 'a\\x00b'"]),
        (Kind::SubmitJobHigh, b"r\0\0", &["submit r '' 9 ''"]),
        (Kind::SubmitJobLow, b"r\0\0x", &["submit r '' 0 'x'"]),
        (Kind::SubmitJob, b"r\0-\0x", &["submit r with a key of 35 bytes b\"x\""]),
        (Kind::SubmitReduceJob, b"r\0u\0sum\0x", &["submit r with a key of 5 bytes b\"x\""]),
        (Kind::SubmitJobBg, b"r\0u\0x", &["keep r 'u' 4 b\"x\" at None"]),
        (Kind::SubmitJobHighBg, b"r\0\0x", &["keep r '' 9 b\"x\" at None"]),
        (Kind::SubmitJobLowBg, b"r\0\0x", &["keep r '' 0 b\"x\" at None"]),
        (Kind::SubmitJobEpoch, b"r\0u\x001700000000\0x", &["keep r 'u' 4 b\"x\" at Some(1700000000000)"]),
        (Kind::SubmitReduceJobBackground, b"r\0u\0sum\0x", &["keep r 'u\\x00sum' 4 b\"x\" at None"]),
        (Kind::EchoReq, b"any\0thing", &["ECHO_RES any|thing"]),
        (Kind::OptionReq, b"exceptions", &["OPTION_RES exceptions"]),
        (Kind::OptionReq, b"x", &["ERROR UNKNOWN_OPTION|Server does not recognize given option"]),
        (Kind::GetStatus, b"H:lap:17", &["Job(17)"]),
        (Kind::GetStatus, b"H:other:17", &["STATUS_RES H:other:17|0|0|0|0"]),
        (Kind::GetStatusUnique, b"u1", &["Unique([117, 49])"]),
        (Kind::SubmitJobSched, b"", &["ERROR INVALID_COMMAND|Command not expected"]),
        (Kind::JobCreated, b"H:lap:1", &["ERROR INVALID_COMMAND|Command not expected"]),
        (
            Kind::SubmitJob,
            &[&[b'f'; 256][..], b"\0\0"].concat(),
            &["ERROR INVALID_FUNCTION_NAME|a function\\'s name is a text of 1 to 255 bytes, as UTF-8"],
        ),
        (
            Kind::SubmitJob,
            b"\xff\0\0",
            &["ERROR INVALID_FUNCTION_NAME|a function\\'s name is a text of 1 to 255 bytes, as UTF-8"],
        ),
        (
            Kind::SubmitJob,
            &[b"f\0", &[b'u'; 65][..], b"\0"].concat(),
            &["ERROR ARGUMENT_TOO_LARGE|Unique value too large"],
        ),
    ] {
        assert_eq!(says(&mut session, &request(kind, data)), expected, "{kind:?}");
    }
    assert_eq!(session.kind(), PeerKind::Client);
}

#[test]
fn workers_packets_say_what_they_ask_for() {
    let mut session = session();
    let wire = [
        request(Kind::CanDo, b"reverse"),
        request(Kind::CanDoTimeout, b"slow\x002500"),
        request(Kind::CanDoTimeout, b"soon\x0010"),
        request(Kind::CanDoTimeout, b"any\x000"),
        request(Kind::CantDo, b"slow"),
        request(Kind::ResetAbilities, b""),
        request(Kind::SetClientId, b"me"),
        request(Kind::AllYours, b""),
        request(Kind::GrabJob, b""),
        request(Kind::GrabJobUniq, b""),
        request(Kind::GrabJobAll, b""),
        request(Kind::PreSleep, b""),
    ];
    assert_eq!(
        says(&mut session, &wire.concat()),
        [
            "a worker",
            "CanDo { action: \"reverse\", limit: None }",
            "CanDo { action: \"slow\", limit: Some(2.5s) }",
            "CanDo { action: \"soon\", limit: Some(1s) }",
            "CanDo { action: \"any\", limit: None }",
            "CantDo { action: \"slow\" }",
            "Reset",
            "Name(\"me\")",
            "nothing",
            "Grab { form: 0 }",
            "Grab { form: 1 }",
            "Grab { form: 2 }",
            "Sleep",
        ]
    );
    assert_eq!(session.kind(), PeerKind::Worker);
}

/// A session that was given assignments 1 to 4: jobs 17 to 19, and a background job.
fn with_jobs(session: &mut Session) -> Vec<String> {
    let payload = Payload::new(b"test");
    let first = Assignment::first("reverse", payload);
    written(|out| {
        session.assign(AssignmentId(1), &Assignment { number: 17, form: 0, key: b"u", ..first }, out);
        session.assign(AssignmentId(2), &Assignment { number: 18, form: 1, key: b"u", ..first }, out);
        session.assign(AssignmentId(3), &Assignment { number: 19, form: 2, key: b"u\0sum", ..first }, out);
        let task_id = Some([0xAB; 16]);
        session.assign(AssignmentId(4), &Assignment { task_id, form: 2, key: b"-\0\0x", ..first }, out);
    })
}

#[test]
fn an_assignment_has_the_form_in_which_it_was_asked_for_and_is_answered_by_its_handle() {
    let mut session = session();
    let kept = "abababab-abab-abab-abab-abababababab";
    assert_eq!(
        with_jobs(&mut session),
        [
            "JOB_ASSIGN H:lap:17|reverse|test".to_owned(),
            "JOB_ASSIGN_UNIQ H:lap:18|reverse|u|test".into(),
            "JOB_ASSIGN_ALL H:lap:19|reverse|u|sum|test".into(),
            format!("JOB_ASSIGN_UNIQ H:lap:{kept}|reverse|-|test"),
        ]
    );
    let wire = [
        request(Kind::WorkStatus, b"H:lap:18\x003\x0010"),
        request(Kind::WorkData, b"H:lap:18\0part"),
        request(Kind::WorkWarning, b"H:lap:18\0a\0b"),
        request(Kind::WorkComplete, b"H:lap:18\0tset"),
        request(Kind::WorkComplete, b"H:lap:18\0tset"),
        request(Kind::WorkException, b"H:lap:17\0no"),
        request(Kind::WorkFail, b"H:lap:17"),
        request(Kind::WorkFail, b"H:lap:17"),
        request(Kind::WorkFail, b"H:lap:19\0"),
        request(Kind::WorkComplete, format!("H:lap:{kept}\0").as_bytes()),
        request(Kind::WorkComplete, b"nonsense\0"),
    ];
    assert_eq!(
        says(&mut session, &wire.concat()),
        [
            "Report 2 3/10 b\"\"",
            "Data 2 0/0 b\"part\"",
            "Warning 2 0/0 b\"a\\x00b\"",
            "Done 2 b\"tset\"",
            "ERROR JOB_NOT_FOUND|Job given in work result not found",
            "Failed(\"no\") 1 b\"no\"",
            "nothing",
            "ERROR JOB_NOT_FOUND|Job given in work result not found",
            "Failed(\"its worker says that it failed\") 3 b\"\"",
            "Done 4 b\"\"",
            "ERROR JOB_NOT_FOUND|Job given in work result not found",
        ]
    );
    assert!(session.held.is_empty());
}

#[test]
fn what_a_client_is_told_names_its_job() {
    let mut session = session();
    let (peer, id, payload) = (PEER, 17, Payload::new(b"data"));
    let effects = |failure: &'static str, payload| {
        [
            Effect::Created { peer, id },
            Effect::Progress {
                peer,
                id,
                kind: ProgressKind::Report,
                done: 1,
                total: 2,
                payload: Payload::EMPTY,
            },
            Effect::Progress { peer, id, kind: ProgressKind::Data, done: 0, total: 0, payload },
            Effect::Progress { peer, id, kind: ProgressKind::Warning, done: 0, total: 0, payload },
            Effect::Fail { peer, id, code: ErrorCode::WorkerFailed, message: failure.into(), payload },
        ]
    };
    let told = |session: &mut Session, effects: &[Effect<'_>]| {
        written(|out| effects.iter().for_each(|effect| session.encode(effect.clone(), out)))
    };
    let before = [
        "JOB_CREATED H:lap:17",
        "WORK_STATUS H:lap:17|1|2",
        "WORK_DATA H:lap:17|data",
        "WORK_WARNING H:lap:17|data",
    ];
    let seen = told(&mut session, &effects("no", payload));
    assert_eq!((&seen[..4], &*seen[4]), (&before.map(String::from)[..], "WORK_FAIL H:lap:17"));
    session.exceptions = true;
    assert_eq!(told(&mut session, &effects("no", payload))[4], "WORK_EXCEPTION H:lap:17|data");
    assert_eq!(told(&mut session, &effects("no", Payload::EMPTY))[4], "WORK_EXCEPTION H:lap:17|no");
    let plain = decode::PLAIN_FAILURE;
    assert_eq!(told(&mut session, &effects(plain, Payload::EMPTY))[4], "WORK_FAIL H:lap:17");
    assert_eq!(written(|out| session.result(17, payload, out)), ["WORK_COMPLETE H:lap:17|data"]);
    let code = ErrorCode::QueueFull;
    let refused = Effect::Refused { peer, id, code, message: "too many".into() };
    assert_eq!(told(&mut session, &[refused]), ["ERROR QUEUE_ERROR|queue_full: too many"]);
    let told = told(&mut session, &[Effect::NoTask { peer }, Effect::Wake { peer }, Effect::GoAway { peer }]);
    assert_eq!(told, ["NO_JOB", "NOOP"]);
}

#[test]
fn background_jobs_are_named_by_their_task_ids() {
    let mut session = session();
    let task = [0xAB; 16];
    let handle = "H:lap:abababab-abab-abab-abab-abababababab";
    let standing = |state, progress| Standing {
        task,
        state,
        attempts: 1,
        created_at_ms: 0,
        due_at_ms: None,
        ended_at_ms: None,
        progress,
    };
    let answer = |answer, id| Effect::Answer { peer: PEER, id, answer };
    let ask = |session: &mut Session| {
        let wire = Bytes::from(request(Kind::GetStatus, handle.as_bytes()));
        match session.decode(&context(), PEER, &wire, &mut 0) {
            Ok(Step::Ask(Ask::Fetch { id, task: asked, .. })) if asked == task => id,
            other => panic!("{other:?}"),
        }
    };
    let accepted = StoreAnswer::Accepted { task, duplicate: false };
    let told = written(|out| session.encode(answer(accepted, Request::Submit.number(1)), out));
    assert_eq!(told, [format!("JOB_CREATED {handle}")]);
    for (state, progress, numbers) in [
        (TaskState::Scheduled, (0, 0), "1|0|0|0"),
        (TaskState::Queued, (0, 0), "1|0|0|0"),
        (TaskState::Running, (3, 9), "1|1|3|9"),
        (TaskState::Failed, (3, 9), "0|0|0|0"),
    ] {
        let id = ask(&mut session);
        let (standing, payload) = (standing(state, progress), Payload::EMPTY);
        let answer = answer(StoreAnswer::Standing { standing, payload }, id);
        let told = written(|out| session.encode(answer, out));
        assert_eq!(told, [format!("STATUS_RES {handle}|{numbers}")]);
    }
    let id = ask(&mut session);
    let told = written(|out| session.result(id, Payload::new(b"done"), out));
    assert_eq!(told, [format!("STATUS_RES {handle}|0|0|0|0")]);
    let fail =
        |id, code| Effect::Fail { peer: PEER, id, code, message: "why".into(), payload: Payload::EMPTY };
    let id = ask(&mut session);
    let told = written(|out| session.encode(fail(id, ErrorCode::NotFound), out));
    assert_eq!(told, [format!("STATUS_RES {handle}|0|0|0|0")]);
    assert!(session.asked.is_empty());
    let id = Request::Submit.number(9);
    let told = written(|out| session.encode(fail(id, ErrorCode::StoreUnavailable), out));
    assert_eq!(told, ["ERROR QUEUE_ERROR|store_unavailable: why"]);
}

#[test]
fn bytes_that_are_no_packet_end_the_connection_with_an_error_that_names_the_reason() {
    for (wire, says_so) in [
        (request(Kind::SubmitJob, b"f"), "SUBMIT_JOB has 3 arguments, with a NUL between them"),
        (request(Kind::WorkStatus, b"H:lap:1"), "WORK_STATUS has 3 arguments"),
        (b"\0RES\0\0\0\x07".to_vec(), "this is a response"),
        (b"\0XYZ".to_vec(), "a packet begins with"),
        (b"\0REQ\0\0\0\x63\0\0\0\0".to_vec(), "no packet has the type 99"),
        (b"\0REQ\0\0\0\x07\x7f\0\0\0".to_vec(), "SUBMIT_JOB has 2130706432 bytes"),
        (vec![b'x'; 2000], "a command has 1024 bytes at most"),
    ] {
        let mut session = session();
        // Some make the peer known first.
        let said = says(&mut session, &wire).pop().unwrap_or_default();
        assert!(said.starts_with("refused: ") && said.contains(says_so), "{said}");
        let kept = session.frame_bytes(&context(), &wire, &[]);
        assert!(kept.is_err() || wire.len() > HEADER_BYTES, "what is kept is refused, too");
    }
    let refusal = Refusal::new(ErrorCode::BadFrame, "no");
    let mut session = session();
    assert_eq!(written(|out| session.refuse(&refusal, out)), ["ERROR INVALID_PACKET|bad_frame: no"]);
    says(&mut session, b"version\n");
    assert_eq!(written(|out| session.refuse(&refusal, out)), ["ERR BAD_FRAME no\r\n"]);
}

#[test]
fn a_packet_and_a_line_are_taken_whole_wherever_they_are_cut() {
    let wire = [request(Kind::SubmitJob, b"r\0\0test"), b"status\r\n".to_vec(), request(Kind::GrabJob, b"")];
    let whole = wire.concat();
    for cut in 0..whole.len() {
        let (kept, rest) = whole.split_at(cut);
        let session = session();
        let length = session.frame_bytes(&context(), kept, rest).expect("it is good");
        if cut >= HEADER_BYTES {
            assert_eq!(length, wire[0].len());
        }
    }
    let line = b"show unique jobs\n";
    for cut in 1..line.len() {
        let (kept, rest) = line.split_at(cut);
        assert_eq!(session().frame_bytes(&context(), kept, rest), Ok(line.len()));
        assert_eq!(session().frame_bytes(&context(), kept, &[]), Ok(cut + 1));
    }
}

// ---- runs ----

/// Packets of a client that is a worker, too, many of which follow others that are alike.
fn packets_of_both(random: &mut fastrand::Rng, held: &mut VecDeque<u64>) -> Vec<u8> {
    let long = "f".repeat(40);
    let mut wire = Vec::new();
    for _ in 0..random.usize(1..6) {
        let (what, count) = (random.u8(..8), random.usize(1..20));
        let function =
            [&b"r"[..], b"reverse", b"a-name-of-14ch", long.as_bytes(), b"\xff", b""][random.usize(..6)];
        for _ in 0..count {
            let payload = &[b'x'; 90][..random.usize(..90)];
            match what {
                0..=2 => {
                    let unique = if random.u8(..30) == 0 { &b"u"[..] } else { b"" };
                    let data = [function, b"\0", unique, b"\0", payload].concat();
                    wire.extend_from_slice(&request(Kind::SubmitJob, &data));
                }
                3 => wire.extend_from_slice(&request(Kind::GrabJob, b"")),
                4 => wire.extend_from_slice(&request(Kind::GrabJobUniq, b"")),
                5..7 => {
                    let number = match random.u8(..20) {
                        0 => held.pop_back(),
                        1 => Some(7),
                        _ => held.pop_front(),
                    };
                    let handle = format!("H:lap:{}\0", number.unwrap_or(3));
                    let data = [handle.as_bytes(), payload].concat();
                    wire.extend_from_slice(&request(Kind::WorkComplete, &data));
                }
                _ => wire.extend_from_slice(&request(Kind::EchoReq, payload)),
            }
        }
    }
    wire.truncate(wire.len() - random.usize(..20).min(wire.len()));
    wire
}

#[test]
fn packets_in_a_run_say_what_they_say_one_by_one() {
    for seed in 0..500 {
        let mut random = fastrand::Rng::with_seed(seed);
        let (mut runs, mut singly) = (session(), session());
        let joins = [request(Kind::SubmitJob, b"r\0\0"), request(Kind::GrabJob, b"")].concat();
        assert_eq!(says(&mut runs, &joins), says_of_each(&mut singly, &joins, Session::decode_any));
        let mut held = VecDeque::new();
        for number in (990..1030).chain([1 << 41, 5]) {
            let details = Assignment { number, ..Assignment::first("r", Payload::EMPTY) };
            for session in [&mut runs, &mut singly] {
                session.assign(AssignmentId(number + 1), &details, &mut Output::default());
            }
            held.push_back(number);
        }
        for _ in 0..6 {
            let wire = packets_of_both(&mut random, &mut held);
            let (in_runs, one_by_one) =
                (says(&mut runs, &wire), says_of_each(&mut singly, &wire, Session::decode_any));
            assert_eq!(in_runs, one_by_one, "seed {seed}");
            assert_eq!(runs.held, singly.held, "seed {seed}");
        }
    }
}

#[test]
fn what_is_said_in_a_run_is_written_as_it_is_one_by_one() {
    let (mut runs, mut singly) = (session(), session());
    let numbers = || (95..120).chain([1 << 41, 7]);
    let payload = Payload::new(b"payload");
    for (action, form) in [("reverse", 0), ("r", 0), ("r", 1), ("r", 2), ("reverse", 0)] {
        let mut all = numbers().map(|number| {
            let assignment = AssignmentId(number + 1);
            Pulled { assignment, number, payload }
        });
        let in_a_run = written(|out| runs.assign_pulled((action, form), &mut all, out));
        let one_by_one = written(|out| {
            for number in numbers() {
                let details = Assignment { number, form, ..Assignment::first(action, payload) };
                singly.assign(AssignmentId(number + 1), &details, out);
            }
        });
        assert_eq!(in_a_run, one_by_one);
        assert_eq!(runs.held, singly.held);
    }
    let in_a_run = written(|out| {
        runs.created_some(&mut numbers(), out);
        runs.result_some(&mut numbers().map(|number| (number, payload)), out);
        runs.no_task_some(2, out);
    });
    let one_by_one = written(|out| {
        numbers().for_each(|id| singly.encode(Effect::Created { peer: PEER, id }, out));
        numbers().for_each(|id| singly.encode(Effect::Result { peer: PEER, id, payload }, out));
        (0..2).for_each(|_| singly.encode(Effect::NoTask { peer: PEER }, out));
    });
    assert_eq!(in_a_run, one_by_one);
    assert_eq!(in_a_run[0], "JOB_CREATED H:lap:95");
    assert_eq!(in_a_run[27], "WORK_COMPLETE H:lap:95|payload");
}

#[test]
fn a_session_counts_on_where_its_last_run_ended_and_no_two_sessions_have_the_same_count() {
    let shared = context().gearman;
    let mut seen = std::collections::HashSet::new();
    let mut sessions = [Session::new(&shared, None), Session::new(&shared, None)];
    let job = request(Kind::SubmitJob, b"r\0\0x");
    let wire = Bytes::from([&job[..]].concat().repeat(3000));
    for session in &mut sessions {
        let (context, mut from, mut last) = (context(), 0, None);
        while from < wire.len() {
            match session.decode(&context, PEER, &wire, &mut from) {
                Ok(Step::Jobs(mut jobs)) => {
                    // Not all of them are taken at once.
                    for (number, _) in jobs.by_ref().take(700) {
                        assert!(seen.insert(number) && last.is_none_or(|last| last + 1 == number));
                        last = Some(number);
                    }
                    from = jobs.at();
                    session.jobs_taken(&jobs);
                }
                Ok(Step::Event(Event::ClientJoined { .. })) => {}
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(seen.len(), 6000);
}

// ---- operators ----

/// A scheduler with two clients' jobs and a worker, and a way to ask it.
struct Desk {
    scheduler: Scheduler,
    shared: Shared,
}

impl Desk {
    fn ask(&mut self, question: &Question) -> (String, bool) {
        let place = Place { scheduler: &mut self.scheduler, keeper: None, now: Time(0) };
        let (bytes, stops) = reply(question, &self.shared, place, &mut Vec::new());
        (read_back(&bytes).join(""), stops)
    }

    fn text(&mut self, line: &str) -> String {
        let mut session = session();
        let wire = Bytes::from(format!("{line}\r\n"));
        match session.decode(&context(), PEER, &wire, &mut 0) {
            Ok(Step::Answer(Answer::Question(question), None)) => self.ask(&question).0,
            other => panic!("{other:?}"),
        }
    }
}

fn desk() -> Desk {
    let mut scheduler = Scheduler::new(Config::default());
    let mut handle = |event| scheduler.handle(Time(0), event, &mut Vec::new());
    let worker = Peer { index: 7, generation: 1 };
    handle(Event::ClientJoined { peer: PEER });
    handle(Event::PullerJoined { peer: worker, from: Some([127, 0, 0, 1].into()) });
    handle(Event::Pull { peer: worker, pull: Pull::Name("a worker") });
    handle(Event::Pull { peer: worker, pull: Pull::CanDo { action: "f", limit: None } });
    for (count, priority) in [(1, 9), (2, 4), (3, 4), (4, 0)] {
        let id = handle::number_of(PEER.index, count);
        let key: &[u8] = if count == 2 { b"u2" } else { b"" };
        let task = Submission { priority, key, ..Submission::new(id, "f", Payload::new(b"x")) };
        handle(Event::Submit { peer: PEER, task });
    }
    handle(Event::Pull { peer: worker, pull: Pull::Grab { form: 0 } });
    Desk { scheduler, shared: Shared::new("lap") }
}

#[test]
fn text_commands_are_answered_as_gearmand_answers_them() {
    let mut desk = desk();
    let number = |count| handle::number_of(PEER.index, count);
    assert_eq!(desk.text("status"), "f\t4\t1\t1\n.\n");
    assert_eq!(desk.text("STATUS"), "f\t4\t1\t1\n.\n");
    assert_eq!(desk.text("prioritystatus"), "f\t0\t2\t1\t1\n.\n");
    assert_eq!(desk.text("workers"), "7 127.0.0.1 a_worker : f\n.\n");
    let jobs: String = (1..5).map(|count| format!("H:lap:{}\t0\t0\t0\n", number(count))).collect();
    assert_eq!(desk.text("show jobs"), format!("{jobs}.\n"));
    assert_eq!(desk.text("show unique jobs"), "u2\n.\n");
    assert_eq!(desk.text(&format!("cancel job H:lap:{}", number(4))), "OK\r\n");
    assert_eq!(desk.text(&format!("cancel job H:lap:{}", number(4))), "ERR UNKNOWN_JOB\r\n");
    assert_eq!(desk.text("create function g"), "OK\r\n");
    assert_eq!(desk.text("status"), "f\t3\t1\t1\ng\t0\t0\t0\n.\n");
    assert_eq!(desk.text("drop function g"), "OK\r\n");
    assert_eq!(desk.text("drop function g"), "ERR function not found\r\n");
    let in_use = "ERR there are still connected workers or executing clients\r\n";
    assert_eq!(desk.text("drop function f"), in_use);
    assert_eq!(desk.text("maxqueue f 10"), "OK\r\n");
    assert_eq!(desk.text("maxqueue f 1 2 3"), "OK\r\n");
    assert_eq!(desk.text("verbose"), format!("OK {}\n", if cfg!(test) { "FATAL" } else { "" }));
    assert_eq!(desk.text("version"), format!("OK {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(desk.text("getpid"), format!("OK {}\n", std::process::id()));
    let lacks = "ERR INVALID_ARGUMENTS An+incomplete+set+of+arguments+was+sent+to+this+command+";
    for command in ["maxqueue", "create", "create function", "drop"] {
        let first = command.split(' ').next().unwrap_or("");
        assert_eq!(desk.text(command), format!("{lacks}{first}\r\n"));
    }
    for (command, error) in [
        ("show x", "ERR UNKNOWN_SHOW_ARGUMENTS\r\n"),
        ("show", "ERR UNKNOWN_COMMAND Unknown+server+commandshow\r\n"),
        ("cancel", "ERR UNKNOWN_COMMAND Unknown+server+commandcancel\r\n"),
        ("bogus", "ERR UNKNOWN_COMMAND Unknown+server+commandbogus\r\n"),
        ("", "ERR UNKNOWN_COMMAND Unknown+server+command\r\n"),
    ] {
        assert_eq!(desk.text(command), error);
    }
    assert_eq!(desk.ask(&Question::Text("shutdown graceful".into())), ("OK\r\n".into(), true));
}

#[test]
fn how_a_job_stands_is_told_by_its_handle_and_by_its_unique_id() {
    let mut desk = desk();
    let number = |count| handle::number_of(PEER.index, count);
    let status = |count: u64, rest: &str| format!("STATUS_RES H:lap:{}|{rest}", number(count));
    assert_eq!(desk.ask(&Question::Job(number(1))).0, status(1, "1|1|0|0"));
    assert_eq!(desk.ask(&Question::Job(number(2))).0, status(2, "1|0|0|0"));
    assert_eq!(desk.ask(&Question::Job(number(9))).0, status(9, "0|0|0|0"));
    assert_eq!(desk.ask(&Question::Job(3)).0, "STATUS_RES H:lap:3|0|0|0|0");
    let unique = |text: &[u8]| Question::Unique(text.into());
    assert_eq!(desk.ask(&unique(b"u2")).0, "STATUS_RES_UNIQUE u2|1|0|0|0|1");
    assert_eq!(desk.ask(&unique(b"u3")).0, "STATUS_RES_UNIQUE u3|0|0|0|0|0");
}

#[test]
fn ten_thousand_damaged_packets_give_a_step_or_a_refusal_and_nothing_else() {
    let mut random = fastrand::Rng::with_seed(5);
    let kinds: Vec<Kind> = (0..43).filter_map(Kind::of).collect();
    for _ in 0..10_000 {
        let mut session = session();
        with_jobs(&mut session);
        let mut wire = BytesMut::new();
        for _ in 0..random.usize(1..4) {
            let data: Vec<u8> = (0..random.usize(..40)).map(|_| random.u8(..) & random.u8(..)).collect();
            wire.extend_from_slice(&request(kinds[random.usize(..kinds.len())], &data));
        }
        for _ in 0..random.usize(..4) {
            let at = random.usize(..wire.len());
            wire[at] = random.u8(..);
        }
        wire.truncate(random.usize(1..=wire.len()));
        let wire = wire.freeze();
        let mut from = 0;
        for _ in 0..20 {
            match session.decode(&context(), PEER, &wire, &mut from) {
                Ok(Step::Incomplete) | Err(_) => break,
                Ok(Step::Jobs(mut jobs)) => {
                    jobs.by_ref().for_each(drop);
                    from = jobs.at();
                }
                Ok(Step::Grabs(mut grabs)) => {
                    grabs.take();
                    from = grabs.at();
                }
                Ok(Step::JobResults(mut results)) => {
                    results.by_ref().for_each(drop);
                    from = results.at();
                    session.results_taken(results);
                }
                Ok(_) => {}
            }
            assert!(from <= wire.len());
        }
        let _ = session.frame_bytes(&context(), &wire, &[]);
    }
}

#[test]
fn a_worker_failure_is_a_finish_that_says_so() {
    let mut session = session();
    with_jobs(&mut session);
    let wire = Bytes::from(request(Kind::WorkException, b"H:lap:17\0\xff"));
    match session.decode(&context(), PEER, &wire, &mut 0) {
        Ok(Step::Event(Event::Finished { finish: Finish::Failed(why), payload, .. })) => {
            assert_eq!((why, payload.as_slice()), ("its worker has sent an exception", &b"\xff"[..]));
        }
        other => panic!("{other:?}"),
    }
}
