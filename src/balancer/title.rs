//! Keeps passwords out of the process's title, which every user of the machine can read with `ps`.
//!
//! A program cannot change its arguments without unsafe code, but it can start itself anew in its own place, by the
//! same process id, with the URL in a variable, which only its own user and root can read.

use super::Args;

/// Starts this program anew, in its own place, with each of `--store` and `--bus` that holds a password moved into its
/// variable. Returns when there is nothing to hide, or when it cannot be hidden, which is said in the log.
#[cfg(unix)]
pub(super) fn hide_passwords(args: &Args) {
    use std::os::unix::process::CommandExt as _;

    use reparto_balancer::background::SecretUrl;

    let mut left: Vec<_> = std::env::args_os().skip(1).collect();
    let flags = [("--store", STORE_VARIABLE, &args.store), ("--bus", BUS_VARIABLE, &args.bus)];
    let mut variables = Vec::new();
    for (flag, variable, url) in flags {
        let Some(url) = url.as_deref().filter(|url| SecretUrl::new(url).has_password()) else { continue };
        if let Some(others) = without(flag, &left) {
            left = others;
            variables.push((variable, url));
        }
    }
    if variables.is_empty() {
        return;
    }
    let program = match std::env::current_exe() {
        Ok(program) => program,
        Err(error) => return log::warn!("passwords among the arguments can be seen by `ps`: {error}"),
    };
    let mut command = std::process::Command::new(program);
    if let Some(name) = std::env::args_os().next() {
        command.arg0(name);
    }
    // It returns only if it fails.
    let error = command.args(left).envs(variables).exec();
    log::warn!("passwords among the arguments can be seen by `ps`: {error}");
}

#[cfg(not(unix))]
pub(super) fn hide_passwords(_args: &Args) {}

/// The variable for `--store`.
#[cfg(unix)]
const STORE_VARIABLE: &str = "REPARTO_BALANCER_STORE";
/// The variable for `--bus`.
#[cfg(unix)]
const BUS_VARIABLE: &str = "REPARTO_BALANCER_BUS";

/// The arguments without `FLAG URL` or `FLAG=URL`; `None` when they have none.
#[cfg(unix)]
fn without(flag: &str, arguments: &[std::ffi::OsString]) -> Option<Vec<std::ffi::OsString>> {
    use std::os::unix::ffi::OsStrExt as _;

    let with_value = format!("{flag}=");
    let mut others = Vec::with_capacity(arguments.len());
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        if argument == flag {
            rest.next();
        } else if !argument.as_bytes().starts_with(with_value.as_bytes()) {
            others.push(argument.clone());
        }
    }
    (others.len() < arguments.len()).then_some(others)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_left_without_the_store() {
        for (arguments, left) in [
            (&["balancer", "--store", "x", "--grace", "1s"][..], Some(&["balancer", "--grace", "1s"][..])),
            (&["balancer", "--store=x"], Some(&["balancer"])),
            (&["balancer", "--grace", "1s"], None),
        ] {
            let arguments: Vec<std::ffi::OsString> = arguments.iter().map(Into::into).collect();
            let left = left.map(|left| left.iter().map(std::ffi::OsString::from).collect());
            assert_eq!(without("--store", &arguments), left);
        }
    }
}
