// Started by node.sh, which says what the arguments are.
"use strict";

const cluster = require("node:cluster");
const { SSL_OP_NO_TICKET } = require("node:crypto").constants;
const fs = require("node:fs");
const https = require("node:https");

const [port, cert, key, workers, keepalive, tls] = process.argv.slice(2);
const keepalive_ms = Number(keepalive) * 1000;
const versions = {
  both: ["TLSv1.2", "TLSv1.3"],
  "1.2": ["TLSv1.2", "TLSv1.2"],
  "1.3": ["TLSv1.3", "TLSv1.3"],
}[tls];
if (!versions) {
  console.error("node.sh: TLS is both, 1.2 or 1.3");
  process.exit(64);
}

const nothing = Buffer.from("{}");
const enrolled = Buffer.from('{"node_key":"the-same-key-for-every-host-0001"}');

function answer(request, response) {
  request.resume();
  request.on("end", () => {
    const body = request.url.endsWith("/enroll") ? enrolled : nothing;
    const headers = { "Content-Type": "application/json", "Content-Length": body.length };
    if (!keepalive_ms) headers.Connection = "close";
    response.writeHead(200, headers);
    response.end(body);
  });
}

if (cluster.isPrimary && Number(workers) > 1) {
  for (let worker = 0; worker < Number(workers); worker++) cluster.fork();
} else {
  const server = https.createServer(
    {
      cert: fs.readFileSync(cert),
      key: fs.readFileSync(key),
      minVersion: versions[0],
      maxVersion: versions[1],
      ecdhCurve: "X25519:P-256",
      secureOptions: SSL_OP_NO_TICKET,
    },
    answer,
  );
  server.keepAliveTimeout = keepalive_ms;
  server.maxRequestsPerSocket = 0;
  server.listen({ port: Number(port), host: "127.0.0.1", backlog: 4096 });
}
