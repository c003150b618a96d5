//! `perch token`: makes, lists and revokes the tokens with which others reach the API over TCP.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use perch_api::client::{Client, ClientError};
use perch_api::wire::{CreateToken, GoDuration, Token};

use crate::paths::Paths;

pub(crate) const USAGE: &str = "\
error: usage: perch token create [--name NAME] [--org SLUG] [--app APP] [--read-only] [--expires 720h]
              perch token list [--json]
              perch token revoke NAME|ID
              each with [--data-dir DIR] of the server
";

#[derive(Debug, PartialEq, Eq)]
enum Command {
    Create(CreateToken),
    List { json: bool },
    Revoke(String),
}

/// Entry point of `perch token`.
pub(crate) fn main(args: &[OsString]) -> ExitCode {
    let (command, data_dir) = match parse(args) {
        Some(parsed) => parsed,
        None => return crate::usage(USAGE),
    };
    match run(command, data_dir) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let hint = error.downcast_ref::<ClientError>().and_then(ClientError::hint);
            let code = crate::fail(&error);
            if let Some(hint) = hint {
                eprintln!("  {hint}");
            }
            code
        }
    }
}

fn parse(args: &[OsString]) -> Option<(Command, Option<PathBuf>)> {
    let (verb, rest) = args.split_first()?;
    let mut command = match verb.to_str()? {
        "create" => Command::Create(CreateToken::default()),
        "list" => Command::List { json: false },
        "revoke" => Command::Revoke(String::new()),
        _ => return None,
    };
    let mut data_dir = None;
    let mut rest = rest.iter();
    while let Some(arg) = rest.next() {
        let arg = arg.to_str()?;
        let (name, given) = match arg.split_once('=') {
            Some((name, value)) if arg.starts_with("--") => (name, Some(value.to_owned())),
            _ => (arg, None),
        };
        let mut value = || match &given {
            Some(value) => Some(value.clone()),
            None => rest.next()?.to_str().map(str::to_owned),
        };
        match (&mut command, name) {
            (_, "--data-dir") => data_dir = Some(PathBuf::from(value()?)),
            (Command::Create(input), "--name") => input.name = value()?,
            (Command::Create(input), "--org") => input.org = Some(value()?),
            (Command::Create(input), "--app") => input.app = Some(value()?),
            (Command::Create(input), "--read-only") if given.is_none() => input.read_only = true,
            (Command::Create(input), "--expires") => input.expires_in = Some(seconds(&value()?)?),
            (Command::List { json }, "--json") if given.is_none() => *json = true,
            (Command::Revoke(token), name) if token.is_empty() && !name.starts_with('-') => {
                *token = name.to_owned();
            }
            _ => return None,
        }
    }
    (command != Command::Revoke(String::new())).then_some((command, data_dir))
}

fn seconds(text: &str) -> Option<u64> {
    text.parse::<GoDuration>().ok().map(|length| length.0.as_secs())
}

fn run(command: Command, data_dir: Option<PathBuf>) -> anyhow::Result<()> {
    let socket = Paths::new(data_dir.as_deref())?.api_socket();
    let client = Client::unix(socket);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("could not start the runtime")?;
    Ok(runtime.block_on(ask(client, command))?)
}

async fn ask(client: Client, command: Command) -> perch_api::client::Result<()> {
    match command {
        Command::Create(input) => {
            let made = client.create_token(&input).await?;
            println!("{}", made.secret);
            if std::io::stdout().is_terminal() {
                eprintln!("This is token {}; it is shown only this once", made.token.name);
            }
        }
        Command::List { json } => print(&client.list_tokens().await?, json),
        Command::Revoke(token) => client.revoke_token(&token).await?,
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

    fn parsed(args: &[&str]) -> Option<(Command, Option<PathBuf>)> {
        parse(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_no_command_is_refused() {
        for args in [
            &[][..],
            &["make"],
            &["create", "name"],
            &["create", "--expires", "soon"],
            &["create", "--app"],
            &["create", "--read-only=no"],
            &["list", "--app", "a"],
            &["revoke"],
            &["revoke", "a", "b"],
            &["revoke", "--all"],
        ] {
            assert_eq!(parsed(args), None, "{args:?}");
        }
    }

    #[test]
    fn flags_are_read_in_both_forms() {
        let args = ["create", "--app=web", "--read-only", "--expires", "1h30m", "--data-dir", "/d"];
        let wanted = CreateToken {
            app: Some("web".to_owned()),
            read_only: true,
            expires_in: Some(5400),
            ..CreateToken::default()
        };
        assert_eq!(parsed(&args), Some((Command::Create(wanted), Some("/d".into()))));
        let revoke = Command::Revoke("ci".to_owned());
        assert_eq!(parsed(&["revoke", "ci"]), Some((revoke, None)));
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
