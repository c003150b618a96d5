//! `perch keys`: lists and rotates the keys that sign `Fly-Src`.

use std::process::ExitCode;

use perch_api::wire::{RotateKeys, SourceKey, SourceKeys};

use crate::asking;
use crate::command::Place;

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Command {
    /// List the public keys, as apps find them in /.fly/fly-src.pub
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Make another key; it signs after 12 hours, and the old one is forgotten after 24
    Rotate {
        /// Forget the old key at once, because somebody else has it
        #[arg(long)]
        now: bool,
        #[command(flatten)]
        place: Place,
    },
}

/// Entry point of `perch keys`.
pub(crate) fn main(command: Command) -> ExitCode {
    asking::end(&run(command))
}

fn run(command: Command) -> anyhow::Result<()> {
    let (Command::List { place, .. } | Command::Rotate { place, .. }) = &command;
    let keys = asking::ask(place, async |client| match &command {
        Command::List { .. } => client.list_keys().await,
        Command::Rotate { now, .. } => client.rotate_keys(RotateKeys { now: *now }).await,
    })?;
    match command {
        Command::List { json: true, .. } => println!("{}", serde_json::json!(keys.keys)),
        Command::List { .. } | Command::Rotate { .. } => println!("{}", table(&keys)),
    }
    Ok(())
}

fn table(keys: &SourceKeys) -> String {
    let lines = keys.keys.iter().map(line);
    lines.collect::<Vec<_>>().join("\n")
}

fn line(key: &SourceKey) -> String {
    let what = if key.signs { "signs" } else { "is known" };
    match &key.until {
        Some(until) => format!("{}  {what}, forgotten at {until}", key.public),
        None => format!("{}  {what}", key.public),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::parse;

    #[test]
    fn what_is_no_command_is_refused() {
        for args in [&["turn"][..], &["rotate", "--json"], &["rotate", "x"], &["list", "--now"]] {
            assert!(parse(&[&["keys"], args].concat()).is_err(), "{args:?}");
        }
        let place = Place { data_dir: Some("/d".into()) };
        let parsed = parse(&["keys", "rotate", "--now", "--data-dir=/d"]);
        let wanted = Command::Rotate { now: true, place };
        assert_eq!(parsed, Ok(crate::command::Command::Keys(wanted)));
    }

    #[test]
    fn a_list_says_which_key_signs_and_which_is_forgotten_when() {
        let old = SourceKey {
            public: "aa".to_owned(),
            signs: true,
            until: Some("2026-01-01T00:00:00Z".to_owned()),
        };
        let new = SourceKey { public: "bb".to_owned(), ..SourceKey::default() };
        let text = table(&SourceKeys { keys: vec![old, new] });
        assert_eq!(text, "aa  signs, forgotten at 2026-01-01T00:00:00Z\nbb  is known");
    }
}
