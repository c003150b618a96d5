//! `auth whoami | token`.

use super::Context;
use crate::args::Json;
use crate::console::Style;
use crate::failure::{Failure, Outcome};
use crate::render;
use clap::Subcommand;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub(crate) enum Auth {
    /// Show who you are to the server
    Whoami {
        #[command(flatten)]
        json: Json,
    },
    /// Show the token that is used
    #[command(hide = true)]
    Token {
        #[command(flatten)]
        json: Json,
        /// Do not say that this is deprecated
        #[arg(short, long)]
        quiet: bool,
    },
}

pub(super) async fn run(context: &Context<'_>, command: Auth) -> Outcome {
    match command {
        Auth::Whoami { json } => whoami(context, context.wants_json(&json)).await,
        Auth::Token { json, quiet } => token(context, context.wants_json(&json), quiet),
    }
}

async fn whoami(context: &Context<'_>, as_json: bool) -> Outcome {
    let caller = context.client.whoami().await;
    let user = caller
        .map_err(|error| Failure::from(error).context("failed retrieving current user"))?
        .user;
    if as_json {
        return Ok(render::json(context.console, &json!({"email": user}))?);
    }
    context.console.line(user);
    Ok(())
}

fn token(context: &Context<'_>, as_json: bool, quiet: bool) -> Outcome {
    let token = context.env.token_in_use().ok_or_else(|| no_token(context))?;
    if as_json {
        return Ok(render::json(context.console, &json!({"token": token}))?);
    }
    if !quiet {
        context.console.styled_note(
            Style::Yellow,
            "The 'fly auth token' command is deprecated. Use 'perch token create' on the server's \
             host instead.",
        );
    }
    context.console.line(token);
    Ok(())
}

fn no_token(context: &Context<'_>) -> Failure {
    match context.env.socket_in_use() {
        Some(socket) => Failure::new(format!(
            "no token is in use: {} needs none, it knows its callers by their user id",
            socket.display()
        ))
        .hint("A token is for calls over TCP; make one with `perch token create`"),
        None => Failure::new("no token is in use, and the server's address needs one")
            .hint("Make one with `perch token create` on the server's host and set PERCH_TOKEN"),
    }
}
