//! Requests about secrets.

use http::Method;

use super::Backend;
use super::answer::{Outcome, json};
use super::handler::{Call, misrouted};
use super::query::Query;
use super::route::Route;
use crate::wire::{
    ApiError, Secret, SecretAnswer, SecretPage, SecretsAnswer, SecretsVersion, SetSecret,
    UpdateSecrets,
};

pub(super) async fn answer<B: Backend>(call: Call<B>, route: Route) -> Outcome {
    match route {
        Route::Secrets(app) => all(call, app).await,
        Route::Secret(app, name) => one(call, app, name).await,
        _ => misrouted(),
    }
}

async fn all<B: Backend>(mut call: Call<B>, app: String) -> Outcome {
    if call.head.method == Method::POST {
        let input = call.read().await?;
        return json(&call.backend().update_secrets(call.peer.clone(), app, input).await?);
    }
    json(&SecretPage { secrets: listed(&call, app).await? })
}

async fn one<B: Backend>(mut call: Call<B>, app: String, name: String) -> Outcome {
    if call.head.method == Method::GET {
        let secrets = listed(&call, app.clone()).await?;
        return json(&found(secrets, &app, &name)?);
    }
    let value = match call.head.method {
        Method::DELETE => None,
        _ => Some(call.read::<SetSecret>().await?.value),
    };
    let unset = value.is_none();
    let input = UpdateSecrets { values: [(name.clone(), value)].into() };
    let answer = call.backend().update_secrets(call.peer.clone(), app.clone(), input).await?;
    let SecretsAnswer { secrets, version } = answer;
    if unset {
        return json(&SecretsVersion { version });
    }
    json(&SecretAnswer { secret: found(secrets, &app, &name)?, version })
}

fn found(secrets: Vec<Secret>, app: &str, name: &str) -> Result<Secret, ApiError> {
    let found = secrets.into_iter().find(|secret| secret.name == name);
    found.ok_or_else(|| ApiError::not_found(format!("app {app} has no secret {name}")))
}

async fn listed<B: Backend>(call: &Call<B>, app: String) -> Result<Vec<Secret>, ApiError> {
    let query = call.query()?;
    refuse_values(&query)?;
    let version = query.number("version")?.unwrap_or(0);
    call.backend().list_secrets(call.peer.clone(), app, version).await
}

/// A value is for the programs of its app only, whoever asks.
fn refuse_values(query: &Query) -> Result<(), ApiError> {
    if query.flag("show_secrets")? {
        return Err(ApiError::forbidden(
            "values of secrets are not shown to anybody; a Machine of the app has them in its environment",
        ));
    }
    Ok(())
}
