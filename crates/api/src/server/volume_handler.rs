//! Requests about volumes.

use http::Method;

use super::Backend;
use super::answer::{Outcome, json};
use super::handler::{Call, misrouted};
use super::route::Route;

pub(super) async fn answer<B: Backend>(mut call: Call<B>, route: Route) -> Outcome {
    let peer = call.peer.clone();
    match (call.head.method.clone(), route) {
        (Method::GET, Route::Volumes(app)) => json(&call.backend().list_volumes(peer, app).await?),
        (Method::POST, Route::Volumes(app)) => {
            let input = call.read().await?;
            json(&call.backend().create_volume(peer, app, input).await?)
        }
        (Method::GET, Route::Volume(app, id)) => {
            json(&call.backend().get_volume(peer, app, id).await?)
        }
        (Method::PUT, Route::Volume(app, id)) => {
            let input = call.read().await?;
            json(&call.backend().update_volume(peer, app, id, input).await?)
        }
        (Method::DELETE, Route::Volume(app, id)) => {
            json(&call.backend().delete_volume(peer, app, id).await?)
        }
        (Method::PUT, Route::ExtendVolume(app, id)) => {
            let input = call.read().await?;
            json(&call.backend().extend_volume(peer, app, id, input).await?)
        }
        (Method::GET, Route::Snapshots(app, id)) => {
            json(&call.backend().list_snapshots(peer, app, id).await?)
        }
        (Method::POST, Route::Snapshots(app, id)) => {
            json(&call.backend().create_snapshot(peer, app, id).await?)
        }
        _ => misrouted(),
    }
}
