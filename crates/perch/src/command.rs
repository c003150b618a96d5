//! The operator's command line. Help, the refusal of what is not understood, and the manual pages come from this one
//! definition; what a command takes stands beside what it does.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{backup, down, keys, quickstart, restore, server, swap, token};

/// Run private apps on this machine and wake them with their next request
#[derive(Debug, PartialEq, Eq, Parser)]
#[command(
    name = "perch",
    version,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "See perch-fly(1) for the client, and /etc/perch/perch.toml for what can be set"
)]
pub(crate) struct Perch {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, PartialEq, Eq, Subcommand)]
pub(crate) enum Command {
    /// Run the server
    Server(server::Options),
    /// Make, list and revoke tokens for the API over TCP
    #[command(subcommand)]
    Token(token::Command),
    /// List and rotate the keys that sign Fly-Src, by which apps know who calls
    #[command(subcommand)]
    Keys(keys::Command),
    /// Write what the server keeps into one file, also while it runs
    #[command(
        after_help = "The key of the secrets is not in it; keep a copy of that in another place"
    )]
    Backup(backup::Options),
    /// Make a data directory out of such a file
    #[command(
        after_help = "Everything is checked before anything is changed; no server may run meanwhile"
    )]
    Restore(restore::Options),
    /// Watch a private app sleep and wake, in a place of its own
    Quickstart(quickstart::Options),
    /// Check what this machine offers, and how to mend it
    Doctor,
    /// Make, remove and show swap for Machines that sleep
    #[command(subcommand)]
    Swap(swap::Command),
    /// Stop all Machines and remove namespace, routes and tables
    Down(down::Options),
    /// Write the manual pages of perch and fly into a directory
    #[command(hide = true)]
    Man {
        /// An existing directory
        dir: PathBuf,
    },
    /// Print the version
    Version,
}

/// Which server is meant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub(crate) struct Place {
    /// Where the server keeps its data [default: /var/lib/perch]
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
}

impl Perch {
    /// What this process was called with. Ends it where that is no command, or asks for help.
    pub(crate) fn of_process() -> Self {
        let mut definition = definition();
        let matches = definition.get_matches_mut();
        Self::from_arg_matches(&matches)
            .unwrap_or_else(|error| error.format(&mut definition).exit())
    }
}

/// With the client, which reads its own arguments.
pub(crate) fn definition() -> clap::Command {
    let fly = clap::Command::new("fly")
        .about("The client: the same commands as Fly's, see perch-fly(1)")
        .disable_help_flag(true);
    Perch::command().subcommand(fly)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// What `perch` would do, else what it would say.
    pub(crate) fn parse(words: &[&str]) -> Result<Command, String> {
        let words = std::iter::once(&"perch").chain(words);
        let parsed = Perch::try_parse_from(words).map(|perch| perch.command);
        parsed.map_err(|error| error.to_string())
    }

    #[test]
    fn the_definition_is_sound() {
        definition().debug_assert();
    }

    #[test]
    fn what_is_no_command_is_refused_by_name_and_with_a_remedy() {
        let said = |words: &[&str]| parse(words).expect_err("no command line");
        let typo = said(&["server", "--data-dri", "/d"]);
        assert!(typo.contains("'--data-dri'") && typo.contains("'--data-dir'"), "{typo}");
        assert!(said(&["sever"]).contains("'server'"));
        assert!(said(&["server", "--listen-api", "localhost"]).contains("'localhost'"));
        assert!(said(&["server", "--region", "x", "y"]).contains("'y'"));
        assert!(said(&["down", "--purge=no"]).contains("--purge"));
        assert!(said(&["backup"]).contains("<FILE>"));
        for words in [&[][..], &["token"], &["keys"], &["swap"]] {
            assert!(said(words).contains("Usage: perch"), "{words:?}");
        }
    }

    #[test]
    fn everything_is_explained() {
        fn check(command: &clap::Command) {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name} has no description");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{name}: {} has none", argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&definition());
    }
}
