//! The actions that `reparto worker` offers without being told anything: small, real, and good to try things with.
//!
//! | action | payload | result |
//! |---|---|---|
//! | `echo` | anything | the same |
//! | `upper` | text | in capitals (of bytes that are not UTF-8, only the ASCII letters) |
//! | `reverse` | text | its characters from last to first (bytes, when it is not UTF-8) |
//! | `sleep` | milliseconds, up to a day | `slept N ms`, that much later |
//! | `fib` | n, 0 to 186 | the n-th Fibonacci number, exactly |
//! | `sum` | whole numbers, separated by commas | their sum, exactly |
//! | `greet` | a name | `Hello, NAME!` |
//! | `sha256` | anything | its SHA-256 digest in hexadecimal |
//! | `wc` | anything | its lines, words and bytes, as `wc` counts them |
//!
//! Where the payload is a number or a name, blanks and line breaks around it are ignored. Bad input is a final
//! error with a sentence that says what was wrong.

mod numbers;
mod text;

use bytes::Bytes;

pub use numbers::{fib, sleep, sum};
pub use text::{echo, greet, reverse, sha256, upper, wc};

use crate::actions::Actions;
use crate::task::{Task, TaskError};

/// All of them.
///
/// ```
/// let names = reparto_worker::builtin::actions();
/// assert!(names.contains("sum") && names.contains("sha256"));
/// ```
pub fn actions() -> Actions {
    Actions::new()
        .with("echo", echo)
        .with("upper", upper)
        .with("reverse", reverse)
        .with("sleep", sleep)
        .with("fib", fib)
        .with("sum", sum)
        .with("greet", greet)
        .with("sha256", sha256)
        .with("wc", wc)
}

/// The payload as text without what surrounds it.
fn trimmed<'a>(action: &str, task: &'a Task) -> Result<&'a str, TaskError> {
    match std::str::from_utf8(task.payload()) {
        Ok(text) => Ok(text.trim()),
        Err(error) => {
            Err(format!("{action}: the payload is not UTF-8 text (at byte {})", error.valid_up_to()).into())
        }
    }
}

/// What was given, short enough for a sentence.
fn shown(text: &str) -> String {
    const MOST: usize = 60;
    let start = reparto_protocol::cut(text, MOST);
    let dots = if start.len() < text.len() { "..." } else { "" };
    format!("'{}{dots}'", start.escape_debug())
}

fn text(result: impl ToString) -> Bytes {
    Bytes::from(result.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(action: &str, payload: impl Into<Bytes>) -> Result<Bytes, TaskError> {
        let task = Task::detached(action, payload);
        actions().get(action).unwrap().run(&task)
    }

    #[test]
    fn good_input_gives_the_documented_result() {
        let cases: &[(&str, &[u8], &[u8])] = &[
            ("echo", b"\x00\xffanything\n", b"\x00\xffanything\n"),
            ("echo", b"", b""),
            ("upper", "señal 1".as_bytes(), "SEÑAL 1".as_bytes()),
            ("upper", b"a\xffb", b"A\xffB"),
            ("reverse", "año".as_bytes(), "oña".as_bytes()),
            ("reverse", b"a\xffb", b"b\xffa"),
            ("sleep", b" 1\n", b"slept 1 ms"),
            ("fib", b"0", b"0"),
            ("fib", b"1", b"1"),
            ("fib", b"10\n", b"55"),
            ("fib", b"93", b"12200160415121876738"),
            ("fib", b"186", b"332825110087067562321196029789634457848"),
            ("sum", b"1,2,3,4,5", b"15"),
            ("sum", b" 1, -2 ,\t+3\n", b"2"),
            ("sum", b"170141183460469231731687303715884105727", b"170141183460469231731687303715884105727"),
            ("greet", b"Ana", b"Hello, Ana!"),
            ("greet", "  José \n".as_bytes(), "Hello, José!".as_bytes()),
            ("sha256", b"", b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
            ("sha256", b"abc", b"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            ("wc", b"", b"0 0 0"),
            ("wc", b"one two", b"0 2 7"),
            ("wc", b"a b c\nd e f\ng h 0123456789012345678901234\n", b"3 9 42"),
        ];
        for (action, payload, result) in cases {
            let got = run(action, payload.to_vec());
            assert_eq!(got.as_deref(), Ok(*result), "{action} of {:?}", String::from_utf8_lossy(payload));
        }
    }

    #[test]
    fn bad_input_fails_for_good_with_a_sentence_that_names_it() {
        let cases: &[(&str, &[u8], &str)] = &[
            ("sum", b"1,x", "sum: 'x' (item 2) is not a whole number"),
            ("sum", b"1,,2", "sum: '' (item 2) is not a whole number"),
            ("sum", b"", "sum: the payload is empty; give whole numbers separated by commas, such as 1,2,3"),
            ("sum", b"1\xff", "sum: the payload is not UTF-8 text (at byte 1)"),
            (
                "sum",
                b"170141183460469231731687303715884105728",
                "sum: '170141183460469231731687303715884105728' (item 1) is over 128 bits",
            ),
            (
                "sum",
                b"170141183460469231731687303715884105727,1",
                "sum: with '1' (item 2) the sum is over 128 bits",
            ),
            ("fib", b"187", "fib: 187 is over 186, the last Fibonacci number of 128 bits"),
            ("fib", b"-1", "fib: '-1' is not a whole number from 0 to 186"),
            ("fib", b"", "fib: '' is not a whole number from 0 to 186"),
            ("sleep", b"soon", "sleep: 'soon' is not a number of milliseconds"),
            ("sleep", b"86400001", "sleep: 86400001 ms is over the limit of 86400000 ms (a day)"),
            ("greet", b" \n", "greet: the payload is empty; give a name, such as Ana"),
        ];
        for (action, payload, sentence) in cases {
            let got = run(action, payload.to_vec());
            assert_eq!(got, Err(TaskError::failed(*sentence)), "{action} of {payload:?}");
        }
    }

    #[test]
    fn a_long_value_is_cut_in_its_sentence() {
        let Err(error) = run("sum", "x".repeat(1000)) else { panic!("it is no number") };
        assert!(error.to_string().len() < 150);
    }

    #[test]
    fn sleep_wakes_when_it_is_cancelled() {
        let task = Task::detached("sleep", "86400000");
        task.cancellation().cancel(crate::task::CancelReason::Unwanted);
        assert_eq!(sleep(&task), Err(TaskError::failed("cancelled")));
    }
}
