//! `perch man DIR`: writes the manual pages of `perch` and `fly`, for those who install them.
//!
//! The pages of `fly` come from its definitions. `perch` reads its few arguments itself; what they are is
//! said here once more, and a test holds it against the usage texts.

use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Arg, ArgAction, Command};
use perch_cli::manual::{self, Page};

/// Entry point of `perch man`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let [dir] = args else {
        return crate::usage("error: usage: perch man DIR\n");
    };
    match write(Path::new(dir)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

fn write(dir: &Path) -> anyhow::Result<()> {
    for Page { name, text } in manual::of(perch()) {
        write_page(dir, &name, &text)?;
    }
    // `fly` may be somebody else's; ours is always there as `perch fly`.
    for Page { name, text } in manual::of_fly() {
        write_page(dir, &format!("perch-{name}"), &text)?;
    }
    Ok(())
}

fn write_page(dir: &Path, name: &str, text: &str) -> anyhow::Result<()> {
    let file = dir.join(format!("{name}.1"));
    std::fs::write(&file, text).with_context(|| format!("could not write {}", file.display()))
}

fn perch() -> Command {
    let data_dir =
        || value("data-dir", "DIR", "Where the server keeps its data [default: /var/lib/perch]");
    let region = value("region", "CODE", "Region of this host, three lower-case letters");
    let listen =
        value("listen-api", "ADDR:PORT", "Serve the API over TCP as well, to holders of tokens");
    Command::new("perch")
        .about("Run private apps on this machine and wake them with their next request")
        .after_help(
            "See perch-fly(1) for the client, and /etc/perch/perch.toml for what can be set",
        )
        .subcommands([
            Command::new("server").about("Run the server").args([
                data_dir(),
                value("config", "FILE", "Configuration file [default: /etc/perch/perch.toml]"),
                region,
                listen,
            ]),
            token(data_dir()),
            backup(data_dir()),
            restore(data_dir()),
            Command::new("quickstart")
                .about("Watch a private app sleep and wake, in a place of its own")
                .args([
                    flag("once", "End when it was seen, without waiting for a key"),
                    value("dir", "DIR", "Where to keep its data"),
                ]),
            Command::new("doctor").about("Check what this machine offers, and how to mend it"),
            swap(data_dir()),
            Command::new("down")
                .about("Stop all Machines and remove namespace, routes and tables")
                .args([data_dir(), flag("purge", "Remove the data as well")]),
            Command::new("fly")
                .about("The client: the same commands as Fly's, see perch-fly(1)")
                .hide(true),
            Command::new("version").about("Print the version"),
        ])
}

fn backup(data_dir: Arg) -> Command {
    Command::new("backup")
        .about("Write what the server keeps into one file, also while it runs")
        .after_help("The key of the secrets is not in it; keep a copy of that in another place")
        .args([
            file("The file to write"),
            data_dir,
            value("config", "FILE", "The server's configuration [default: /etc/perch/perch.toml]"),
            flag("logs", "With what the Machines printed"),
            flag("force", "Replace a file that is there"),
        ])
}

fn restore(data_dir: Arg) -> Command {
    Command::new("restore")
        .about("Make a data directory out of such a file")
        .after_help("Everything is checked before anything is changed; no server may run meanwhile")
        .args([
            file("A file that `perch backup` wrote"),
            data_dir,
            flag("force", "Put the data aside that are there"),
        ])
}

fn swap(data_dir: Arg) -> Command {
    Command::new("swap").about("Make, remove and show swap for Machines that sleep").subcommands([
        Command::new("create")
            .about("Make swap in the data directory, and switch it on")
            .after_help("Whoever runs on this machine can use it. A server that starts switches it on again")
            .args([
                Arg::new("size").value_name("SIZE").required(true).help("Such as 512MiB or 2GB"),
                flag("zram", "Compressed memory instead of a file"),
                data_dir.clone(),
            ]),
        Command::new("remove").about("Switch it off and remove it").arg(data_dir.clone()),
        Command::new("show").about("Show the swap of this machine, whoever made it").arg(data_dir),
    ])
}

fn file(help: &'static str) -> Arg {
    Arg::new("file").value_name("FILE").required(true).help(help)
}

fn token(data_dir: Arg) -> Command {
    Command::new("token").about("Make, list and revoke tokens for the API over TCP").subcommands([
        Command::new("create").about("Make a token and print it, once").args([
            value("name", "NAME", "What to call it"),
            value("org", "SLUG", "Good for this organization only"),
            value("app", "APP", "Good for this app only"),
            flag("read-only", "Good for reading only"),
            value("expires", "LENGTH", "How long it is good, such as 720h"),
            data_dir.clone(),
        ]),
        Command::new("list").about("List tokens").args([flag("json", "As JSON"), data_dir.clone()]),
        Command::new("revoke")
            .about("Revoke a token")
            .args([Arg::new("token").value_name("NAME|ID").required(true), data_dir]),
    ])
}

fn value(name: &'static str, placeholder: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(placeholder).help(help)
}

fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).action(ArgAction::SetTrue).help(help)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_pages_have_the_commands_and_flags_of_the_usage_texts() {
        let words = |text: &str| -> BTreeSet<String> {
            let is_part = |c: char| c.is_ascii_lowercase() || c == '-';
            let flags = text.split(move |c| !is_part(c)).filter(|word| word.starts_with("--"));
            flags.map(|flag| flag[2..].to_owned()).collect()
        };
        let own =
            [crate::token::USAGE, crate::backup::USAGE, crate::restore::USAGE, crate::swap::USAGE];
        let own = own.concat();
        let usage = crate::USAGE.to_owned() + &own;
        let mut flags = BTreeSet::new();
        collect(&perch(), &mut flags);
        assert_eq!(flags, words(&usage));
        let lines = crate::USAGE.lines().filter_map(|line| line.strip_prefix("  "));
        let named: Vec<_> = lines.filter_map(|line| line.split(' ').next()).collect();
        let perch = perch();
        let ours: Vec<_> = perch.get_subcommands().map(Command::get_name).collect();
        assert_eq!(ours, named);
    }

    fn collect(command: &Command, flags: &mut BTreeSet<String>) {
        flags.extend(command.get_arguments().filter_map(|arg| arg.get_long().map(str::to_owned)));
        command.get_subcommands().for_each(|it| collect(it, flags));
    }
}
