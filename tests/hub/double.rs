//! Test double of the Hugging Face Hub: a server with its endpoints, and a second one for large files, since the Hub
//! stores them on another host. Faults can be injected into both.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, Mutex};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// Fault of a request.
#[derive(Clone, Debug)]
pub(crate) enum Fault {
    /// Responds with a status and an error code of the Hub.
    Status(u16, &'static str),
    /// Closes the connection after this number of content bytes.
    Cut(usize),
    /// Changes a byte of the content.
    Damage,
    /// Sends the content from its first byte, ignoring the requested range.
    Whole,
}

/// Received request.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) range: Option<String>,
    /// Whether the storage server received it.
    pub(crate) storage: bool,
}

/// Repository: commits by revision, and the files of each commit.
#[derive(Default)]
struct Repository {
    revisions: BTreeMap<String, String>,
    commits: BTreeMap<String, BTreeMap<String, Vec<u8>>>,
}

struct Shared {
    hub: String,
    storage: String,
    repositories: Mutex<BTreeMap<String, Repository>>,
    faults: Mutex<Vec<(String, usize, Fault)>>,
    seen: Mutex<Vec<Seen>>,
}

/// Running test double.
pub(crate) struct Double(Arc<Shared>);

impl Double {
    pub(crate) fn start() -> Self {
        let [hub, storage] = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
        let shared = Arc::new(Shared {
            hub: url(&hub),
            storage: url(&storage),
            repositories: Mutex::default(),
            faults: Mutex::default(),
            seen: Mutex::default(),
        });
        for (listener, is_storage) in [(hub, false), (storage, true)] {
            let shared = shared.clone();
            std::thread::spawn(move || {
                for stream in listener.incoming().map_while(Result::ok) {
                    let shared = shared.clone();
                    std::thread::spawn(move || shared.answer(&stream, is_storage));
                }
            });
        }
        Self(shared)
    }

    pub(crate) fn url(&self) -> String {
        self.0.hub.clone()
    }

    /// Publishes files as a new commit of `models/owner/name` or `datasets/owner/name`; returns the commit.
    pub(crate) fn publish(&self, repository: &str, files: &[(&str, Vec<u8>)]) -> String {
        let mut repositories = self.0.repositories.lock().unwrap();
        let place = repositories.entry(repository.to_string()).or_default();
        let commit = format!("{:040x}", 0xabc0 + place.commits.len());
        let files = files.iter().map(|(name, content)| (name.to_string(), content.clone())).collect();
        place.commits.insert(commit.clone(), files);
        place.revisions.insert("main".to_string(), commit.clone());
        commit
    }

    /// Publish the files of a folder together with `more`.
    pub(crate) fn publish_folder(&self, repository: &str, folder: &Path, more: &[(&str, Vec<u8>)]) -> String {
        let mut files: Vec<(String, Vec<u8>)> = (std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap()))
            .map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.extend(more.iter().map(|(name, content)| (name.to_string(), content.clone())));
        let files: Vec<(&str, Vec<u8>)> =
            files.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
        self.publish(repository, &files)
    }

    /// Assign a revision name to a commit.
    pub(crate) fn tag(&self, repository: &str, revision: &str, commit: &str) {
        let mut repositories = self.0.repositories.lock().unwrap();
        repositories.get_mut(repository).unwrap().revisions.insert(revision.to_string(), commit.to_string());
    }

    /// Injects `fault` into the next `times` requests whose path contains `part`; content faults only into downloads.
    pub(crate) fn fail(&self, part: &str, times: usize, fault: Fault) {
        self.0.faults.lock().unwrap().push((part.to_string(), times, fault));
    }

    /// Remove all faults.
    pub(crate) fn clear_faults(&self) {
        self.0.faults.lock().unwrap().clear();
    }

    /// Return the requests since the last call.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *self.0.seen.lock().unwrap())
    }
}

impl Shared {
    fn answer(&self, stream: &TcpStream, storage: bool) {
        let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
        let Some(first) = lines.next() else { return };
        let mut words = first.split(' ').map(str::to_string);
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let headers: Vec<(String, String)> = (lines.take_while(|line| !line.is_empty()))
            .filter_map(|line| line.split_once(": ").map(|(key, value)| (key.to_ascii_lowercase(), value.to_string())))
            .collect();
        let header = |name: &str| headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone());
        let seen = Seen { method, path, token: header("authorization"), range: header("range"), storage };
        self.seen.lock().unwrap().push(seen.clone());
        let path = seen.path.replace("%2F", "/");
        let fault = self.fault(&seen, &path);
        if let Some(Fault::Status(status, code)) = fault {
            let code = if code.is_empty() {
                String::new()
            } else {
                format!("X-Error-Code: {code}\r\nX-Error-Message: told so\r\n")
            };
            return reply(stream, &seen, status, &code, b"{}", usize::MAX);
        }
        let parts: Vec<&str> = path.trim_start_matches('/').split('/').collect();
        match &parts[..] {
            _ if storage => self.content(stream, &seen, path.trim_start_matches('/'), fault),
            ["api", kind, owner, name, "revision", ..] => {
                let revision = path.split("/revision/").nth(1).unwrap_or_default();
                self.list(stream, &seen, &format!("{kind}/{owner}/{name}"), revision);
            }
            ["cached", kind, owner, name, commit, file] => {
                let repository = format!("{kind}/{owner}/{name}");
                let content = self.repositories.lock().unwrap()[&repository].commits[*commit][*file].clone();
                send(stream, &seen, "ETag: \"ca11ed\"\r\n", content, fault);
            }
            ["datasets", owner, name, "resolve", commit, ..] => {
                self.resolve(stream, &seen, &format!("datasets/{owner}/{name}"), commit, &parts[5..].join("/"), fault);
            }
            [owner, name, "resolve", commit, ..] => {
                self.resolve(stream, &seen, &format!("models/{owner}/{name}"), commit, &parts[4..].join("/"), fault);
            }
            _ => reply(stream, &seen, 404, "", b"", usize::MAX),
        }
    }

    /// Return the fault of a request. Content faults do not apply to metadata requests.
    fn fault(&self, seen: &Seen, path: &str) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let fits = |(part, times, fault): &&mut (String, usize, Fault)| {
            path.contains(part.as_str()) && *times > 0 && (matches!(fault, Fault::Status(..)) || seen.method == "GET")
        };
        let (_, times, fault) = faults.iter_mut().find(fits)?;
        *times -= 1;
        Some(fault.clone())
    }

    fn list(&self, stream: &TcpStream, seen: &Seen, repository: &str, revision: &str) {
        let repositories = self.repositories.lock().unwrap();
        let missing = |code: &str| reply(stream, seen, 404, &format!("X-Error-Code: {code}\r\n"), b"{}", usize::MAX);
        let Some(place) = repositories.get(repository) else { return missing("RepoNotFound") };
        let commit = place.revisions.get(revision).map_or(revision, String::as_str);
        let Some(files) = place.commits.get(commit) else { return missing("RevisionNotFound") };
        let siblings: Vec<_> = files.keys().map(|name| json!({ "rfilename": name })).collect();
        let answer = json!({ "id": repository, "sha": commit, "private": false, "siblings": siblings });
        reply(stream, seen, 200, "", answer.to_string().as_bytes(), usize::MAX);
    }

    /// Return a small file, or redirects to a large one.
    fn resolve(
        &self,
        stream: &TcpStream,
        seen: &Seen,
        repository: &str,
        commit: &str,
        file: &str,
        fault: Option<Fault>,
    ) {
        let repositories = self.repositories.lock().unwrap();
        let content = repositories.get(repository).and_then(|place| place.commits.get(commit)?.get(file)).cloned();
        drop(repositories);
        let Some(content) = content else {
            return reply(stream, seen, 404, "X-Error-Code: EntryNotFound\r\n", b"", usize::MAX);
        };
        if [".safetensors", ".parquet"].iter().any(|ending| file.ends_with(ending)) {
            let sha256 = Sha256::digest(&content);
            let headers = format!(
                "X-Repo-Commit: {commit}\r\nX-Linked-Etag: \"{sha256:x}\"\r\nX-Linked-Size: {}\r\nLocation: {}/{repository}/{commit}/{file}\r\n",
                content.len(),
                self.storage
            );
            return reply(stream, seen, 302, &headers, b"moved", usize::MAX);
        }
        // Like the Hub for small files: a redirect on the same host, with a relative location.
        if file == "config.json" {
            let headers = format!("X-Repo-Commit: {commit}\r\nLocation: /cached/{repository}/{commit}/{file}\r\n");
            return reply(stream, seen, 307, &headers, b"moved", usize::MAX);
        }
        let id = Sha1::new_with_prefix(format!("blob {}\0", content.len())).chain_update(&content).finalize();
        let headers = format!("X-Repo-Commit: {commit}\r\nETag: W/\"{id:x}\"\r\n");
        send(stream, seen, &headers, content, fault);
    }

    /// Send a large file.
    fn content(&self, stream: &TcpStream, seen: &Seen, path: &str, fault: Option<Fault>) {
        let mut parts = path.splitn(5, '/');
        let mut part = || parts.next().unwrap_or_default();
        let (repository, commit, file) = (format!("{}/{}/{}", part(), part(), part()), part(), part());
        let content = self.repositories.lock().unwrap()[&repository].commits[commit][file].clone();
        send(stream, seen, "", content, fault);
    }
}

/// Send a content or the requested range of it.
fn send(stream: &TcpStream, seen: &Seen, headers: &str, mut content: Vec<u8>, fault: Option<Fault>) {
    if matches!(fault, Some(Fault::Damage)) {
        *content.last_mut().unwrap() ^= 1;
    }
    let from =
        seen.range.as_ref().and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let most = if let Some(Fault::Cut(most)) = fault { most } else { usize::MAX };
    match from.filter(|_| !matches!(fault, Some(Fault::Whole))) {
        Some(from) => {
            let range = format!("{headers}Content-Range: bytes {from}-{}/{}\r\n", content.len() - 1, content.len());
            reply(stream, seen, 206, &range, &content[from..], most);
        }
        None => reply(stream, seen, 200, headers, &content, most),
    }
}

/// Write a response with at most `most` bytes of its body.
fn reply(mut stream: &TcpStream, seen: &Seen, status: u16, headers: &str, body: &[u8], most: usize) {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Told\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n");
    let body = if seen.method == "HEAD" { &[][..] } else { &body[..length.min(most)] };
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
    let _ = stream.shutdown(Shutdown::Write);
}
