//! Requests about Machines.

use std::time::Duration;

use http::{Method, StatusCode};

use super::answer::{Outcome, done, json, json_with};
use super::handler::{Call, misrouted};
use super::query::{self, Query};
use super::route::{Part, Route};
use super::{Backend, DeleteMachine, MachineTarget, Phase, reached};
use crate::wire::{
    ApiError, GoDuration, LeaseInput, Machine, MachineFilter, MetadataValue, RestartQuery,
    WaitQuery, WaitState,
};

// Fly's limits for `wait` (flyctl loops over waits of 60 s).
const WAIT_TIMEOUT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
// MA-63: single Machine commands ask for 120 s; who says nothing gets the same.
const LEASE_SECONDS_DEFAULT: u64 = 120;
// A forgotten lease blocks everybody else, so it cannot be for ever; the answer says when it ends.
const LEASE_SECONDS_MAX: u64 = 3600;

pub(super) async fn answer<B: Backend>(call: Call<B>, route: Route) -> Outcome {
    match route {
        Route::Machines(app) => collection(call, app).await,
        Route::Machine(app, id) => {
            let target = call.target(&app, &id);
            single(call, target).await
        }
        Route::MetadataKey(app, id, key) => {
            let target = call.target(&app, &id);
            metadata_key(call, target, key).await
        }
        Route::MachinePart(app, id, part) => {
            let target = call.target(&app, &id);
            match part {
                Part::Start
                | Part::Stop
                | Part::Suspend
                | Part::Restart
                | Part::Signal
                | Part::Cordon
                | Part::Uncordon => command(call, target, part).await,
                Part::Wait => wait(call, target).await,
                Part::Lease => lease(call, target).await,
                Part::Ps => json(&call.backend().list_processes(call.peer.clone(), target).await?),
                Part::Exec => exec(call, target).await,
                Part::Events => json(&call.backend().list_events(call.peer.clone(), target).await?),
                Part::Busy => busy(call, target).await,
                Part::Metadata => {
                    json(&call.backend().get_metadata(call.peer.clone(), target).await?)
                }
            }
        }
        _ => misrouted(),
    }
}

async fn collection<B: Backend>(mut call: Call<B>, app: String) -> Outcome {
    let peer = call.peer.clone();
    if call.head.method == Method::POST {
        let input = call.read().await?;
        return machine_answer(call.backend().create_machine(peer, app, input).await?);
    }
    let filter = filter(&call.query()?)?;
    let mut machines = call.backend().list_machines(peer, app, filter).await?;
    machines.iter_mut().for_each(|machine| machine.config.fill_guest());
    json(&machines)
}

fn filter(query: &Query) -> Result<MachineFilter, ApiError> {
    let state = query
        .get("state")
        .map(|text| text.parse().map_err(|_| query::bad("state", text, "a state")));
    let mut metadata = Vec::new();
    for pair in query.all("metadata") {
        let (key, value) =
            pair.split_once('=').ok_or_else(|| query::bad("metadata", pair, "KEY=VALUE"))?;
        metadata.push((key.to_owned(), value.to_owned()));
    }
    metadata
        .extend(query.under("metadata.").map(|(key, value)| (key.to_owned(), value.to_owned())));
    Ok(MachineFilter {
        include_deleted: query.flag("include_deleted")?,
        region: query.owned("region"),
        state: state.transpose()?,
        metadata,
    })
}

/// flyctl dereferences `config.guest` without a look.
fn machine_answer(mut machine: Machine) -> Outcome {
    machine.config.fill_guest();
    json(&machine)
}

async fn single<B: Backend>(mut call: Call<B>, target: MachineTarget) -> Outcome {
    let peer = call.peer.clone();
    match call.head.method {
        Method::POST => {
            let input = call.read().await?;
            machine_answer(call.backend().update_machine(peer, target, input).await?)
        }
        Method::DELETE => {
            let query = call.query()?;
            let how = DeleteMachine { force: query.flag("kill")? || query.flag("force")? };
            call.backend().delete_machine(peer, target, how).await?;
            done()
        }
        _ => machine_answer(call.backend().get_machine(peer, target).await?),
    }
}

fn restart_query(query: &Query) -> Result<RestartQuery, ApiError> {
    let signal = query.get("signal").map(|text| {
        text.parse().map_err(|_| query::bad("signal", text, "a signal such as SIGTERM"))
    });
    Ok(RestartQuery {
        force_stop: query.flag("force_stop")?,
        signal: signal.transpose()?,
        timeout: query.seconds("timeout")?.map(GoDuration),
    })
}

async fn command<B: Backend>(mut call: Call<B>, target: MachineTarget, part: Part) -> Outcome {
    let peer = call.peer.clone();
    match part {
        Part::Start => return json(&call.backend().start_machine(peer, target).await?),
        Part::Stop => {
            let input = call.read_or_default().await?;
            call.backend().stop_machine(peer, target, input).await?;
        }
        Part::Suspend => call.backend().suspend_machine(peer, target).await?,
        Part::Restart => {
            let query = restart_query(&call.query()?)?;
            call.backend().restart_machine(peer, target, query).await?;
        }
        Part::Signal => {
            let input = call.read().await?;
            call.backend().signal_machine(peer, target, input).await?;
        }
        Part::Cordon => call.backend().cordon_machine(peer, target).await?,
        Part::Uncordon => call.backend().uncordon_machine(peer, target).await?,
        Part::Wait
        | Part::Lease
        | Part::Ps
        | Part::Events
        | Part::Exec
        | Part::Metadata
        | Part::Busy => {
            return misrouted();
        }
    }
    done()
}

/// The server's end does not wait for the program: it is hung up with the call.
async fn exec<B: Backend>(mut call: Call<B>, target: MachineTarget) -> Outcome {
    let input = call.read().await?;
    let mut phase = call.session.phase.clone();
    tokio::select! {
        answer = call.backend().exec_machine(call.peer.clone(), target, input) => json(&answer?),
        () = reached(&mut phase, Phase::Closing) => {
            Err(ApiError::new(503, "the server is ending; what the program has done is not known"))
        }
    }
}

async fn wait<B: Backend>(call: Call<B>, target: MachineTarget) -> Outcome {
    let query = wait_query(&call.query()?)?;
    let (timeout, id) = (query.timeout, target.id.clone());
    let wanted = query.states.iter().map(|state| state.as_str()).collect::<Vec<_>>().join(" or ");
    let mut phase = call.session.phase.clone();
    tokio::select! {
        outcome = call.backend().wait_machine(call.peer.clone(), target, query) => {
            return outcome.and_then(|()| done());
        }
        () = tokio::time::sleep(timeout) => {}
        // The client waits on with the next server.
        () = reached(&mut phase, Phase::Draining) => {}
    }
    let seconds = timeout.as_secs();
    Err(ApiError::timeout(format!("machine {id} was not {wanted} within {seconds} s")))
}

fn wait_query(query: &Query) -> Result<WaitQuery, ApiError> {
    let wanted = "started, stopped, suspended, destroyed or settled";
    let states = query.all("state").filter(|text| !text.is_empty());
    let states = states.map(|text| text.parse().map_err(|_| query::bad("state", text, wanted)));
    let mut states = states.collect::<Result<Vec<_>, _>>()?;
    if states.is_empty() {
        states.push(WaitState::Started);
    }
    let (min, max) = WAIT_TIMEOUT;
    Ok(WaitQuery {
        states,
        timeout: query.seconds("timeout")?.unwrap_or(max).clamp(min, max),
        version: query.owned("version"),
        from_event_id: query.owned("from_event_id"),
    })
}

async fn lease<B: Backend>(mut call: Call<B>, target: MachineTarget) -> Outcome {
    let peer = call.peer.clone();
    match call.head.method {
        Method::POST => {
            let mut input: LeaseInput = call.read_or_default().await?;
            input.ttl = lease_seconds(call.query()?.seconds("ttl")?, input.ttl);
            json_with(
                StatusCode::CREATED,
                &call.backend().acquire_lease(peer, target, input).await?,
            )
        }
        Method::DELETE => {
            match call.query()?.flag("force")? {
                true => call.backend().clear_lease(peer, target).await?,
                false => call.backend().release_lease(peer, target).await?,
            }
            done()
        }
        _ => json(&call.backend().get_lease(peer, target).await?),
    }
}

async fn busy<B: Backend>(mut call: Call<B>, target: MachineTarget) -> Outcome {
    let peer = call.peer.clone();
    if call.head.method == Method::PUT {
        let input = call.read().await?;
        return json(&call.backend().set_busy(peer, target, input).await?);
    }
    call.backend().end_busy(peer, target).await?;
    done()
}

fn lease_seconds(query: Option<Duration>, body: u64) -> u64 {
    match query.map_or(body, |length| length.as_secs()) {
        0 => LEASE_SECONDS_DEFAULT,
        seconds => seconds.min(LEASE_SECONDS_MAX),
    }
}

async fn metadata_key<B: Backend>(
    mut call: Call<B>,
    target: MachineTarget,
    key: String,
) -> Outcome {
    let value = if call.head.method == Method::POST {
        Some(call.read::<MetadataValue>().await?.value)
    } else {
        None
    };
    call.backend().set_metadata(call.peer.clone(), target, key, value).await?;
    done()
}
