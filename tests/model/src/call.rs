//! Calls of the API with everything filled in, how they are made, and what they answer.

use std::collections::BTreeMap;
use std::net::IpAddr;

use anyhow::{Result, bail};
use perch_api::client::{Client, ClientError};
use perch_api::wire::{
    AddressIntent, App, AppPatch, AssignIp, CreateApp, CreateRelease, IpAssignment, IpKind,
    LaunchInput, Lease, LeaseInput, Machine, Release, ReleaseStatus, Secret, SecretValue, Signal,
    SignalInput, StopInput, UpdateRelease, UpdateSecrets,
};
use serde_json::Value;

/// A Machine as a caller names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub(crate) app: String,
    pub(crate) id: String,
    pub(crate) nonce: Option<String>,
}

/// What is asked of a Machine without more to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Start,
    Stop,
    /// SIGKILL, to the program.
    Signal,
    Cordon,
    Uncordon,
    Delete,
    Kill,
}

/// A call.
#[derive(Debug, Clone)]
pub(crate) enum Call {
    CreateApp {
        name: String,
        org: String,
        network: String,
        intent: AddressIntent,
    },
    UpdateApp {
        app: String,
        intent: Option<AddressIntent>,
    },
    DeleteApp {
        app: String,
    },
    AssignIp {
        app: String,
        kind: IpKind,
        org: String,
        network: String,
    },
    ReleaseIp {
        app: String,
        ip: IpAddr,
    },
    /// New values by name; `None` unsets.
    ChangeSecrets {
        app: String,
        values: BTreeMap<String, Option<String>>,
    },
    CreateMachine {
        app: String,
        input: Launch,
    },
    UpdateMachine {
        target: Target,
        input: Launch,
        current: String,
    },
    Wish {
        target: Target,
        wish: Wish,
    },
    SetMetadata {
        target: Target,
        key: String,
        value: Option<String>,
    },
    AcquireLease {
        target: Target,
        ttl: u64,
        description: String,
    },
    ReleaseLease {
        target: Target,
    },
    CreateRelease {
        app: String,
        image: String,
        definition: Value,
        ttl: u64,
    },
    UpdateRelease {
        id: String,
        status: ReleaseStatus,
    },
}

/// What a Machine is made or changed with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Launch {
    pub(crate) config: Value,
    pub(crate) skip_launch: bool,
    pub(crate) cordoned: bool,
    pub(crate) lease_ttl: u64,
    pub(crate) name: String,
    pub(crate) region: String,
}

/// What the server said.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    App(Box<App>),
    Ip(Box<IpAssignment>),
    Machine(Box<Machine>),
    Lease(Lease),
    /// All secrets of an app.
    Secrets {
        app: String,
        secrets: Vec<Secret>,
    },
    Release(Box<Release>),
    /// The state before a start.
    Previous(String),
    Done,
    Refused {
        code: u16,
        text: String,
    },
    /// The connection broke, or there was none.
    Lost,
}

impl Call {
    /// Makes the call.
    ///
    /// # Errors
    /// When the answer is none that a server gives, or does not come in time.
    pub(crate) async fn make(&self, client: &Client) -> Result<Answer> {
        match self.answer(client).await {
            Ok(answer) => Ok(answer),
            Err(ClientError::Api(error)) => {
                Ok(Answer::Refused { code: error.code, text: error.error })
            }
            Err(
                ClientError::NotRunning { .. }
                | ClientError::Connect { .. }
                | ClientError::Broken { .. },
            ) => Ok(Answer::Lost),
            Err(other) => bail!("{self:?}: {other}"),
        }
    }

    async fn answer(&self, client: &Client) -> Result<Answer, ClientError> {
        Ok(match self {
            Self::CreateApp { .. } | Self::UpdateApp { .. } | Self::DeleteApp { .. } => {
                return self.answer_app(client).await;
            }
            Self::AssignIp { app, kind, org, network } => {
                let (org_slug, network) = (org.clone(), network.clone());
                let input = AssignIp { org_slug, network, ..AssignIp::of_kind(*kind) };
                Answer::Ip(Box::new(client.assign_ip(app, &input).await?))
            }
            Self::ReleaseIp { app, ip } => {
                client.release_ip(app, *ip).await?;
                Answer::Done
            }
            Self::ChangeSecrets { app, values } => {
                let value = |value: &String| SecretValue::new(value.clone());
                let values = values.iter();
                let values = values.map(|(name, text)| (name.clone(), text.as_ref().map(value)));
                let input = UpdateSecrets { values: values.collect() };
                let secrets = client.update_secrets(app, &input).await?.secrets;
                Answer::Secrets { app: app.clone(), secrets }
            }
            Self::CreateRelease { app, image, definition, ttl } => {
                let input = CreateRelease {
                    app_name: app.clone(),
                    definition: definition.clone(),
                    image: image.clone(),
                    strategy: "ROLLING".to_owned(),
                    lease_ttl: *ttl,
                };
                Answer::Release(Box::new(client.create_release(&input).await?))
            }
            Self::UpdateRelease { id, status } => {
                let input = UpdateRelease { status: *status, metadata: Value::Null };
                Answer::Release(Box::new(client.update_release(id, &input).await?))
            }
            Self::CreateMachine { .. }
            | Self::UpdateMachine { .. }
            | Self::Wish { .. }
            | Self::SetMetadata { .. }
            | Self::AcquireLease { .. }
            | Self::ReleaseLease { .. } => return self.answer_machine(client).await,
        })
    }

    async fn answer_app(&self, client: &Client) -> Result<Answer, ClientError> {
        let app = match self {
            Self::CreateApp { name, org, network, intent } => {
                let (name, org_slug, network) = (name.clone(), org.clone(), network.clone());
                let input = CreateApp { name, org_slug, network, address_intent: *intent };
                client.create_app(&input).await?
            }
            Self::UpdateApp { app, intent } => {
                client.update_app(app, &AppPatch { address_intent: *intent }).await?
            }
            Self::DeleteApp { app } => {
                client.delete_app(app).await?;
                return Ok(Answer::Done);
            }
            _ => return Ok(Answer::Done),
        };
        Ok(Answer::App(Box::new(app)))
    }

    async fn answer_machine(&self, client: &Client) -> Result<Answer, ClientError> {
        match self {
            Self::CreateMachine { app, input } => {
                let made = client.create_machine(app, &input.wire("")?).await?;
                return Ok(Answer::Machine(Box::new(made)));
            }
            Self::UpdateMachine { target: Target { app, id, nonce }, input, current } => {
                let input = input.wire(current)?;
                let made = client.update_machine(app, id, &input, nonce.as_deref()).await?;
                return Ok(Answer::Machine(Box::new(made)));
            }
            Self::Wish { target, wish } => return wish.make(client, target).await,
            Self::SetMetadata { target: Target { app, id, nonce }, key, value } => match value {
                Some(value) => client.set_metadata(app, id, key, value, nonce.as_deref()).await?,
                None => client.delete_metadata(app, id, key, nonce.as_deref()).await?,
            },
            Self::AcquireLease { target: Target { app, id, nonce }, ttl, description } => {
                let input = LeaseInput { ttl: *ttl, description: description.clone() };
                return Ok(Answer::Lease(match nonce {
                    Some(nonce) => client.refresh_lease(app, id, &input, nonce).await?,
                    None => client.acquire_lease(app, id, &input).await?,
                }));
            }
            Self::ReleaseLease { target: Target { app, id, nonce } } => {
                client.release_lease(app, id, nonce.as_deref().unwrap_or_default()).await?;
            }
            _ => {}
        }
        Ok(Answer::Done)
    }
}

impl Wish {
    async fn make(self, client: &Client, target: &Target) -> Result<Answer, ClientError> {
        let Target { app, id, nonce } = target;
        let nonce = nonce.as_deref();
        match self {
            Self::Start => {
                let answer = client.start_machine(app, id, nonce).await?;
                return Ok(Answer::Previous(answer.previous_state));
            }
            Self::Stop => client.stop_machine(app, id, &StopInput::default(), nonce).await?,
            Self::Signal => {
                let input = SignalInput { signal: Signal::KILL };
                client.signal_machine(app, id, input, nonce).await?;
            }
            Self::Cordon => client.cordon_machine(app, id, nonce).await?,
            Self::Uncordon => client.uncordon_machine(app, id, nonce).await?,
            Self::Delete => client.delete_machine(app, id, nonce).await?,
            Self::Kill => client.kill_and_delete_machine(app, id, nonce).await?,
        }
        Ok(Answer::Done)
    }
}

impl Launch {
    fn wire(&self, current: &str) -> Result<LaunchInput, ClientError> {
        let config = serde_json::from_value(self.config.clone());
        let config = config.map_err(|error| ClientError::Body {
            call: "a config of ours".to_owned(),
            source: error.into(),
        })?;
        Ok(LaunchInput {
            region: self.region.clone(),
            name: self.name.clone(),
            skip_launch: self.skip_launch,
            skip_service_registration: self.cordoned,
            lease_ttl: self.lease_ttl,
            current_version: current.to_owned(),
            ..LaunchInput::new(config)
        })
    }
}
