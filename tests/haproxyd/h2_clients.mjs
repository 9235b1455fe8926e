// HTTP/2 clients over TLS: sessions that stay open, with several requests on each at a time.
// Usage: node h2_clients.mjs <url> <sessions> <streams> <pause ms>; ends when its input ends, and
// prints {served, failed, retried, sessions, failures, certificates}.
//
// A server that goes away says which requests it has not looked at (GOAWAY, REFUSED_STREAM): those
// are sent again on a new connection, as every client does. Whatever else goes wrong has failed.
import http2 from "node:http2";

const [url, sessions, streams, pause] = process.argv.slice(2);
const { NGHTTP2_REFUSED_STREAM } = http2.constants;
const seen = { served: 0, failed: 0, retried: 0, sessions: 0, failures: {}, certificates: {} };
let over = false;
process.stdin.on("end", () => (over = true)).resume();

class Unprocessed extends Error {}

function opened() {
  return new Promise((resolve, reject) => {
    const session = http2.connect(url, { rejectUnauthorized: false, servername: "shop.example" });
    session.on("error", reject);
    session.on("connect", () => {
      seen.sessions += 1;
      const { serialNumber } = session.socket.getPeerCertificate();
      seen.certificates[serialNumber] = (seen.certificates[serialNumber] ?? 0) + 1;
      resolve(session);
    });
  });
}

function asked(session) {
  return new Promise((resolve, reject) => {
    let status;
    const stream = session.request({ ":path": "/" });
    stream.on("response", (headers) => (status = headers[":status"]));
    stream.on("error", (error) =>
      reject(stream.rstCode === NGHTTP2_REFUSED_STREAM ? new Unprocessed() : error),
    );
    stream.on("end", () => (status === 200 ? resolve() : reject(new Error(`status ${status}`))));
    stream.on("close", () => reject(new Error("closed without an answer")));
    stream.resume();
  });
}

// One session and its requests; a new session as soon as the old one takes no more.
async function client() {
  let session = null;
  let opening = null;
  const usable = async () => {
    if (session && !session.closed && !session.destroyed) return session;
    opening ??= opened().finally(() => (opening = null));
    session = await opening;
    return session;
  };
  const requests = async () => {
    while (!over) {
      try {
        await asked(await usable());
        seen.served += 1;
      } catch (error) {
        if (error instanceof Unprocessed || error.code === "ERR_HTTP2_GOAWAY_SESSION") {
          seen.retried += 1;
        } else {
          seen.failed += 1;
          const what = error.code ?? error.message;
          seen.failures[what] = (seen.failures[what] ?? 0) + 1;
        }
      }
      await new Promise((resolve) => setTimeout(resolve, Number(pause) * (0.5 + Math.random())));
    }
  };
  await Promise.all(Array.from({ length: Number(streams) }, requests));
  session?.close();
}

await Promise.all(Array.from({ length: Number(sessions) }, client));
process.stdout.write(JSON.stringify(seen));
process.exit(0);
