// Runs in a worker: says when so many milliseconds are over.

onmessage = ({ data: { id, ms } }) => setTimeout(() => postMessage(id), ms);
