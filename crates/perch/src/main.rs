//! One file, every role: server, proxy, shim, unpacker, quickstart and the `fly` client.
//!
//! This crate wires the others together and decides nothing. `perch` is the operator's program;
//! called as `fly` or `flyctl`, or as `perch fly …`, it is the client. The roles `proxy`, `shim`,
//! `enter`, `unpack`, `probe`, `freeze` and `reclaim` are started by the server only, `strike` by `quickstart`, from the same file; `man` by
//! who installs it.

mod asking;
mod backup;
mod command;
mod config;
mod doctor;
mod down;
mod embedded;
mod fault;
mod ids;
mod keys;
mod logging;
mod manual;
mod paths;
mod process;
mod proxy;
mod quickstart;
mod restore;
mod server;
mod service_manager;
mod size;
mod swap;
mod token;

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use command::{Command, Perch};

/// Exit code for a wrong command line (house style: 0 done, 1 failed, 2 usage).
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let called_as = args.first().map(Path::new).and_then(Path::file_name);
    if called_as.is_some_and(|name| name == "fly" || name == "flyctl") {
        return fly(args);
    }
    fault::arm();
    let role = args.get(1).and_then(|arg| arg.to_str()).unwrap_or_default();
    let rest = args.get(2..).unwrap_or_default().to_vec();
    match role {
        "proxy" => proxy::main(),
        "shim" => shim(&rest),
        "blank" => blank(&rest),
        "enter" => perch_machine::enter::main(),
        "unpack" => unpack(&rest),
        "probe" => probe(&rest),
        "freeze" => freeze(&rest),
        "reclaim" => reclaim(&rest),
        "strike" => quickstart::guard::main(&rest),
        "fly" => fly(args[1..].to_vec()),
        "faults" if cfg!(debug_assertions) => fault::main(),
        _ => operate(Perch::of_process().command),
    }
}

fn operate(command: Command) -> ExitCode {
    match command {
        Command::Server(options) => server::main(options),
        Command::Token(command) => token::main(command),
        Command::Keys(command) => keys::main(command),
        Command::Backup(options) => backup::main(&options),
        Command::Restore(options) => restore::main(&options),
        Command::Quickstart(options) => quickstart::main(options),
        Command::Doctor => doctor::main(),
        Command::Swap(command) => swap::main(&command),
        Command::Down(options) => down::main(&options),
        Command::Man { dir } => manual::main(&dir),
        Command::Version => {
            println!("perch {}", env!("CARGO_PKG_VERSION"));
            ExitCode::SUCCESS
        }
    }
}

fn fly(args: Vec<OsString>) -> ExitCode {
    perch_cli::run(args, perch_cli::Environment::of_process())
}

fn shim(args: &[OsString]) -> ExitCode {
    match args {
        [dir] => perch_machine::shim::main(Path::new(dir), None),
        [dir, word] => perch_machine::shim::main(Path::new(dir), Some(word)),
        _ => usage("error: perch shim is started by the server only\n"),
    }
}

fn blank(args: &[OsString]) -> ExitCode {
    match args {
        [parent] => perch_machine::shim::blank::main(&parent.to_string_lossy()),
        _ => usage("error: perch blank is started by the server only\n"),
    }
}

fn unpack(args: &[OsString]) -> ExitCode {
    match args {
        [dir] => perch_machine::unpack::main(Path::new(dir)),
        _ => usage("error: perch unpack is started by the server only\n"),
    }
}

fn probe(args: &[OsString]) -> ExitCode {
    match args {
        [dir] => perch_machine::ids::main(Path::new(dir)),
        _ => usage("error: perch probe is started by the server only\n"),
    }
}

fn freeze(args: &[OsString]) -> ExitCode {
    match args {
        [dir] => perch_machine::volumes::freezer_main(Path::new(dir)),
        _ => usage("error: perch freeze is started by the server only\n"),
    }
}

fn reclaim(args: &[OsString]) -> ExitCode {
    match args {
        [file, limit] => perch_machine::reclaim_main(Path::new(file), &limit.to_string_lossy()),
        _ => usage("error: perch reclaim is started by the server only\n"),
    }
}

/// Prints to stderr and answers the exit code for a wrong command line.
pub(crate) fn usage(text: &str) -> ExitCode {
    eprint!("{text}");
    ExitCode::from(EXIT_USAGE)
}

/// Prints an error with its causes, once, at the edge.
pub(crate) fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    ExitCode::FAILURE
}
