//! PID 1 of a Machine: confines itself, runs the program, passes signals on, reaps, and reports how it ended.
//!
//! ```text
//!  /.perch/init PROGRAM [ARG…]
//!    no_new_privs, system call filter, limits ─► gate ─► start PROGRAM ─► wait: signals in, ended children out ─► exit code
//! ```
//!
//! At the gate it waits for a packet from the shim. In a usual start that is there already; in a Machine that is armed it
//! comes when somebody needs the program.
//!
//! Descriptor 4 has variables that only the program gets: `NAME=VALUE`, each ended by a NUL. It is closed before the
//! program starts. Descriptor 3 is a packet socket to the shim. One packet each: `waiting`, `started`, `failed REASON`, `exit CODE SIGNAL`.
//! When the shim dies the kernel kills this process, and with it everything in the Machine.
//!
//! It allocates little, keeps no state beyond the child's id, and uses nothing but the standard library, because every
//! Machine holds a copy of it in memory.

mod filter;
mod sys;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus};

/// Exit codes of shells and container runtimes for a program that cannot be executed, or is missing.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Open files a program may have. Enough for busy servers; small enough for programs that walk over all of them.
const OPEN_FILES_MAX: u64 = 65_536;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    let Some(program) = args.next() else {
        return fail(NOT_FOUND, "no program was given");
    };
    if let Err(error) = confine() {
        return fail(NOT_EXECUTABLE, &format!("could not confine the machine: {error}"));
    }
    // A Machine that was armed counts as started when its gate opens.
    sys::note_signals();
    if let Err(error) = wait_at_gate() {
        return fail(NOT_EXECUTABLE, &format!("could not wait for the shim's word: {error}"));
    }
    let secrets = match sys::take_secrets() {
        Ok(bytes) => variables(bytes),
        Err(error) => return fail(NOT_EXECUTABLE, &format!("could not read the secrets: {error}")),
    };
    run(&program, args.collect(), secrets)
}

/// Takes apart what the launcher packed.
fn variables(bytes: Vec<u8>) -> Vec<(OsString, OsString)> {
    let pair = |text: &[u8]| {
        let at = text.iter().position(|byte| *byte == b'=')?;
        let word = |part: &[u8]| OsString::from_vec(part.to_vec());
        Some((word(&text[..at]), word(&text[at + 1..])))
    };
    bytes.split(|byte| *byte == 0).filter_map(pair).collect()
}

fn confine() -> io::Result<()> {
    sys::die_with_parent()?;
    sys::default_signals();
    sys::close_report_on_exec()?;
    sys::hide()?;
    sys::limit_open_files(OPEN_FILES_MAX)?;
    sys::leave_no_cores()?;
    sys::forbid_new_privileges()?;
    sys::install_filter(&filter::program())
}

/// Returns when the shim says that the program may start; the shim hears that it is waited for.
fn wait_at_gate() -> io::Result<()> {
    if !sys::gate_is_open()? {
        report("waiting");
        while !sys::gate_is_open()? {
            sys::wait_for_shim()?;
        }
    }
    Ok(())
}

/// Starts the program and stays until it has ended.
fn run(program: &OsString, args: Vec<OsString>, secrets: Vec<(OsString, OsString)>) -> ExitCode {
    // Its own process group: what the program sends to its group must not reach PID 1.
    match Command::new(program).args(args).envs(secrets).process_group(0).spawn() {
        Ok(child) => supervise(child.id().cast_signed()),
        Err(error) => not_executed(program, &error),
    }
}

fn not_executed(program: &OsString, error: &io::Error) -> ExitCode {
    let name = program.to_string_lossy();
    let (code, reason) = match error.kind() {
        // The kernel also answers "not found" when the interpreter or loader that the file names is missing.
        io::ErrorKind::NotFound if exists(program) => {
            (NOT_FOUND, format!("program {name:?} needs an interpreter that the image lacks"))
        }
        io::ErrorKind::NotFound if !name.contains('/') => {
            (NOT_FOUND, format!("program {name:?} was not found in PATH"))
        }
        io::ErrorKind::NotFound => {
            (NOT_FOUND, format!("program {name:?} does not exist in the image"))
        }
        io::ErrorKind::PermissionDenied => {
            (NOT_EXECUTABLE, format!("program {name:?} is not executable"))
        }
        _ if error.raw_os_error() == Some(sys::ENOEXEC) => (
            NOT_EXECUTABLE,
            format!("program {name:?} is not for this processor, or is a script without #! line"),
        ),
        _ => (NOT_EXECUTABLE, format!("program {name:?} could not be started: {error}")),
    };
    fail(code, &reason)
}

/// Whether the file is there: as named, or in PATH.
fn exists(program: &OsString) -> bool {
    let program = Path::new(program);
    if program.components().count() > 1 {
        return program.exists();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

fn fail(code: u8, reason: &str) -> ExitCode {
    eprintln!("perch init: {reason}");
    report(&format!("failed {reason}"));
    ExitCode::from(code)
}

/// Signals are blocked only now, because the program inherits the mask.
fn supervise(child: i32) -> ExitCode {
    if let Err(error) = sys::block_signals() {
        return fail(NOT_EXECUTABLE, &format!("could not block signals: {error}"));
    }
    report("started");
    sys::take_noted().for_each(|signal| sys::send_signal(child, signal));
    // The program may have ended before its signal could be kept.
    let mut signal = sys::SIGCHLD;
    loop {
        if signal != sys::SIGCHLD {
            sys::send_signal(child, signal);
        } else if let Some(status) = reap(child) {
            return ended(status);
        }
        signal = sys::next_signal();
    }
}

/// Reaps everything that has ended; the answer is the program's status if it was among them.
fn reap(child: i32) -> Option<ExitStatus> {
    let mut ended = None;
    while let Some((pid, status)) = sys::reap_one() {
        if pid == child {
            ended = Some(ExitStatus::from_raw(status));
        }
    }
    ended
}

/// Whatever the program left behind is killed by the kernel when PID 1 exits.
fn ended(status: ExitStatus) -> ExitCode {
    let signal = status.signal().unwrap_or(0);
    let code = status.code().unwrap_or(128 + signal);
    report(&format!("exit {code} {signal}"));
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}

/// The shim reads this; without a shim nobody misses it.
fn report(text: &str) {
    sys::send_report(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_ends_as_128_and_its_number() {
        assert_eq!(ended(ExitStatus::from_raw(9)), ExitCode::from(137));
        assert_eq!(ended(ExitStatus::from_raw(7 << 8)), ExitCode::from(7));
    }

    #[test]
    fn values_may_hold_anything_but_a_nul() {
        let taken = variables(b"A=b=c\0EMPTY=\0LINES=x\ny\0".to_vec());
        let words: Vec<_> =
            taken.iter().map(|(name, value)| (name.as_os_str(), value.as_os_str())).collect();
        let pair = |name: &'static str, value: &'static str| (name.as_ref(), value.as_ref());
        assert_eq!(words, [pair("A", "b=c"), pair("EMPTY", ""), pair("LINES", "x\ny")]);
        assert!(variables(Vec::new()).is_empty());
    }

    #[test]
    fn a_missing_program_is_127() {
        let error = io::Error::from(io::ErrorKind::NotFound);
        assert_eq!(not_executed(&"nothing".into(), &error), ExitCode::from(NOT_FOUND));
    }
}
