//! `perch token`: makes, lists and revokes the tokens with which others reach the API over TCP.

use std::io::IsTerminal;
use std::process::ExitCode;

use perch_api::client::Client;
use perch_api::wire::{CreateToken, GoDuration, Token};

use crate::asking;
use crate::command::Place;

#[derive(Debug, PartialEq, Eq, clap::Subcommand)]
pub(crate) enum Command {
    /// Make a token and print it, once
    Create {
        /// What to call it
        #[arg(long, default_value = "", hide_default_value = true)]
        name: String,
        /// Good for this organization only
        #[arg(long, value_name = "SLUG")]
        org: Option<String>,
        /// Good for this app only
        #[arg(long)]
        app: Option<String>,
        /// Good for reading only
        #[arg(long)]
        read_only: bool,
        /// How long it is good, such as 720h
        #[arg(long, value_name = "LENGTH", value_parser = seconds)]
        expires: Option<u64>,
        #[command(flatten)]
        place: Place,
    },
    /// List tokens
    List {
        /// As JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        place: Place,
    },
    /// Revoke a token
    Revoke {
        /// Its name or id
        #[arg(value_name = "NAME|ID")]
        token: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Entry point of `perch token`.
pub(crate) fn main(command: Command) -> ExitCode {
    asking::end(&run(command))
}

fn seconds(text: &str) -> Result<u64, String> {
    let length = text.parse::<GoDuration>();
    length.map(|it| it.0.as_secs()).map_err(|_| "write a length like 720h or 90m".to_owned())
}

fn run(command: Command) -> anyhow::Result<()> {
    let (Command::Create { place, .. }
    | Command::List { place, .. }
    | Command::Revoke { place, .. }) = &command;
    let place = place.clone();
    asking::ask(&place, |client| ask(client, command))
}

async fn ask(client: Client, command: Command) -> perch_api::client::Result<()> {
    match command {
        Command::Create { name, org, app, read_only, expires, .. } => {
            let input = CreateToken { name, org, app, read_only, expires_in: expires };
            let made = client.create_token(&input).await?;
            println!("{}", made.secret);
            if std::io::stdout().is_terminal() {
                eprintln!("This is token {}; it is shown only this once", made.token.name);
            }
        }
        Command::List { json, .. } => print(&client.list_tokens().await?, json),
        Command::Revoke { token, .. } => client.revoke_token(&token).await?,
    }
    Ok(())
}

fn print(tokens: &[Token], json: bool) {
    if json {
        println!("{}", serde_json::json!(tokens));
        return;
    }
    println!("{}", table(tokens));
}

fn table(tokens: &[Token]) -> String {
    let line = |name: &str, id: &str, good_for: &str, expires: &str| {
        format!("{name:<24} {id:<12} {good_for:<32} {expires}")
    };
    let mut lines = vec![line("NAME", "ID", "GOOD FOR", "EXPIRES")];
    lines.extend(tokens.iter().map(|token| {
        let end = token.expires_at.as_deref().unwrap_or("never");
        let end = if token.expired { format!("{end} (expired)") } else { end.to_owned() };
        line(&token.name, &token.id, &good_for(token), &end)
    }));
    lines.join("\n")
}

fn good_for(token: &Token) -> String {
    let what = match (&token.app, &token.org) {
        (Some(app), _) => format!("app {app}"),
        (None, Some(org)) => format!("organization {org}"),
        (None, None) => "everything".to_owned(),
    };
    if token.read_only { format!("{what}, reading") } else { what }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::tests::parse;

    #[test]
    fn what_is_no_command_is_refused() {
        for args in [
            &["make"][..],
            &["create", "name"],
            &["create", "--expires", "soon"],
            &["create", "--app"],
            &["create", "--read-only=no"],
            &["list", "--app", "a"],
            &["revoke"],
            &["revoke", "a", "b"],
            &["revoke", "--all"],
        ] {
            assert!(parse(&[&["token"], args].concat()).is_err(), "{args:?}");
        }
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let args = ["create", "--app=web", "--read-only", "--expires", "1h30m", "--data-dir", "/d"];
        let wanted = Command::Create {
            name: String::new(),
            org: None,
            app: Some("web".to_owned()),
            read_only: true,
            expires: Some(5400),
            place: Place { data_dir: Some("/d".into()) },
        };
        let parsed = parse(&[&["token"], &args[..]].concat());
        assert_eq!(parsed, Ok(crate::command::Command::Token(wanted)));
    }

    #[test]
    fn a_list_says_what_each_token_is_good_for() {
        let token = Token {
            name: "ci".to_owned(),
            app: Some("web".to_owned()),
            read_only: true,
            expires_at: Some("2026-01-01T00:00:00Z".to_owned()),
            expired: true,
            ..Token::default()
        };
        let text = table(&[token, Token::default()]);
        assert!(text.contains("app web, reading"), "{text}");
        assert!(text.contains("2026-01-01T00:00:00Z (expired)"), "{text}");
        assert!(text.contains("everything") && text.contains("never"), "{text}");
    }
}
