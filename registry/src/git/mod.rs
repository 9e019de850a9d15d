//! The smart HTTP protocol of git, spoken by git's own `upload-pack` and `receive-pack`.

mod commands;
mod judge;
mod process;
mod push;
mod report;

use std::{collections::HashSet, sync::Arc};

use axum::{
    body::Body,
    extract::{Query, State as AxumState},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use futures::StreamExt;
use serde::Deserialize;

pub(crate) use judge::{forbids_deleting, forbids_forward, forbids_letting_go};
pub(crate) use process::{GitRequest, GitRunner, Program};
pub(crate) use push::{choose_head, repair};

use self::{process::Push, report::Report};
use crate::{access::Access, refusal::Refusal, state::State};

/// Query of `info/refs`.
#[derive(Deserialize)]
pub(crate) struct RefsQuery {
    service: Option<String>,
}

/// `GET <repository>.git/info/refs?service=...`
pub(crate) async fn info_refs(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    Query(query): Query<RefsQuery>,
    headers: HeaderMap,
) -> Result<Response, Refusal> {
    let program = match query.service.as_deref() {
        Some("git-upload-pack") => Program::UploadPack,
        Some("git-receive-pack") => Program::ReceivePack,
        Some(_) => return Err(Refusal::forbidden("this service is not offered")),
        None => {
            return Err(Refusal::forbidden(
                "only git's smart HTTP protocol is served",
            ));
        }
    };
    let path = match program {
        Program::UploadPack => state.layout.repository(access.readable(&state).await?),
        Program::ReceivePack => {
            let repository = access.writable(&state).await?;
            state.require_space(0)?;
            if state.layout.exists(repository) {
                state.layout.repository(repository)
            } else {
                state.layout.empty_repository()
            }
        }
    };
    let protocol = protocol(&headers);
    let request = GitRequest {
        program,
        repository: &path,
        protocol: protocol.as_deref(),
        share: access.share(),
        is_mirror: access.is_mirror(),
    };
    let exchange = state.git.advertise(request).await?;
    // Version 2 has no service line, see git's http-backend.
    let version_2 = program == Program::UploadPack
        && protocol.is_some_and(|p| p.split(':').any(|part| part == "version=2"));
    let preamble = if version_2 {
        String::new()
    } else {
        service_line(program)
    };
    let body = exchange.into_body(preamble.into_bytes());
    Ok(answer(
        &format!("application/x-{}-advertisement", program.service()),
        body,
    ))
}

/// `POST <repository>.git/git-upload-pack`
pub(crate) async fn upload_pack(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let repository = access.readable(&state).await?;
    state.touch(repository);
    let path = state.layout.repository(repository);
    let program = Program::UploadPack;
    require_content_type(program, &headers)?;
    let protocol = protocol(&headers);
    let request = GitRequest {
        program,
        repository: &path,
        protocol: protocol.as_deref(),
        share: access.share(),
        is_mirror: access.is_mirror(),
    };
    let exchange = state.git.serve(request, body, None).await?;
    Ok(answer(
        "application/x-git-upload-pack-result",
        exchange.into_body(Vec::new()),
    ))
}

/// `POST <repository>.git/git-receive-pack`; makes the repository if it is not there.
pub(crate) async fn receive_pack(
    AxumState(state): AxumState<Arc<State>>,
    access: Access,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refusal> {
    let repository = access.writable(&state).await?.clone();
    let program = Program::ReceivePack;
    require_content_type(program, &headers)?;
    state.require_space(content_length(&headers))?;
    let (commands, body) = commands::read(body, state.limits.git.idle).await?;
    let verdict = judge::judge(&state, &access, &commands).await?;
    push::note_refusals(&state, &access, &commands, &verdict);
    let refused: HashSet<&str> = verdict.refused.iter().map(|(n, _)| n.as_str()).collect();
    let kept = |name: &str| !refused.contains(name);
    let passed: Vec<_> = commands
        .list
        .iter()
        .filter(|command| kept(&command.name))
        .cloned()
        .collect();
    let tells = commands.has("report-status") || commands.has("report-status-v2");
    if let Some((name, reason)) = verdict.refused.first().filter(|_| !tells) {
        // The client could not be told which of its refs did not come.
        return Err(Refusal::forbidden(format!("{name}: {reason}")));
    }
    let report = Report::new(&commands, verdict.refused.clone());
    let result_type = "application/x-git-receive-pack-result";
    if passed.is_empty() && !commands.list.is_empty() {
        push::pass_over(body, &state.limits.git).await?;
        state.metrics.pushes.with_label_values(&["failure"]).inc();
        return Ok(answer(result_type, Body::from(report.alone())));
    }
    let written = commands.written(|command| kept(&command.name));
    let head = futures::stream::iter([Ok::<_, axum::Error>(written)]);
    let body = Body::from_stream(head.chain(body.into_data_stream()));
    let path = state.create(&repository).await?;
    let protocol = protocol(&headers);
    let done = push::finisher(Arc::clone(&state), access.clone(), passed, path.clone()).await?;
    let request = GitRequest {
        program,
        repository: &path,
        protocol: protocol.as_deref(),
        share: access.share(),
        is_mirror: access.is_mirror(),
    };
    let space = Arc::clone(&state);
    let push = Push {
        finisher: done,
        has_space: Box::new(move || space.require_space(0).is_ok()),
        report,
        forward_only: verdict.forward_only,
    };
    let exchange = state.git.serve(request, body, Some(push)).await?;
    Ok(answer(result_type, exchange.into_body(Vec::new())))
}

/// The length that a request announces; 0 if it does not.
pub(crate) fn content_length(headers: &HeaderMap) -> u64 {
    headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse().ok())
        .unwrap_or(0)
}

fn answer(content_type: &str, body: Body) -> Response {
    let mut response = (StatusCode::OK, body).into_response();
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::from_str(content_type) {
        headers.insert(header::CONTENT_TYPE, value);
    }
    headers.insert(
        header::CACHE_CONTROL,
        HeaderValue::from_static("no-cache, max-age=0"),
    );
    response
}

fn service_line(program: Program) -> String {
    let line = format!("# service={}\n", program.service());
    format!("{:04x}{line}0000", line.len() + 4)
}

/// The header by which a client asks for a version of the protocol, if it has a harmless form: it
/// becomes an environment variable of git.
fn protocol(headers: &HeaderMap) -> Option<String> {
    let text = headers.get("git-protocol")?.to_str().ok()?;
    let harmless = (1..=128).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"=:.-_".contains(&b));
    harmless.then(|| text.to_owned())
}

fn require_content_type(program: Program, headers: &HeaderMap) -> Result<(), Refusal> {
    let expected = format!("application/x-{}-request", program.service());
    if headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|value| value == expected.as_str())
    {
        return Ok(());
    }
    let message = format!("the content type must be {expected}");
    Err(Refusal::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "BadRequest",
        message,
        false,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_service_line_has_its_length_in_front() {
        assert_eq!(
            service_line(Program::UploadPack),
            "001e# service=git-upload-pack\n0000"
        );
    }

    #[test]
    fn only_a_harmless_protocol_header_reaches_git() {
        let with = |value: &str| {
            protocol(&HeaderMap::from_iter([(
                header::HeaderName::from_static("git-protocol"),
                value.parse().unwrap(),
            )]))
        };
        assert_eq!(with("version=2").as_deref(), Some("version=2"));
        assert_eq!(with("version=2; rm"), None);
        assert_eq!(with(&"v".repeat(200)), None);
    }
}
