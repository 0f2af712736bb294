// Reads a task's stream as the frontend does: blocks split on a blank line, lines
// that begin with "data: ", one JSON object with a type. Prints what it saw.
const api = process.env.API_URL

const signed = await fetch(`${api}/api/auth/sign-in/email`, {
  method: 'POST',
  headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ email: process.env.EMAIL, password: process.env.PASSWORD }),
})
const headers = { 'content-type': 'application/json', authorization: `Bearer ${signed.headers.get('set-auth-token')}` }

// events yields {id, data} of a response; keepalives are not its business.
async function* events(response) {
  if (!response.ok || !response.body) throw new Error(`status ${response.status}: ${await response.text()}`)
  const decoder = new TextDecoder()
  let buffer = ''
  for await (const bytes of response.body) {
    buffer += decoder.decode(bytes, { stream: true })
    const blocks = buffer.split('\n\n')
    buffer = blocks.pop()
    for (const block of blocks) {
      let id, data
      for (const line of block.split('\n')) {
        if (line.startsWith('id: ')) id = line.slice(4)
        if (line.startsWith('data: ')) data = JSON.parse(line.slice(6))
      }
      if (data && data.type !== 'keepalive') yield { id, data }
    }
  }
}

async function post(message) {
  return fetch(`${api}/api/v2/agents/task/stream`, { method: 'POST', headers, body: JSON.stringify({ message }) })
}

const all = []
for await (const event of events(await post(process.env.MESSAGE))) all.push(event)
const taskId = all[0].data.taskId

const cuts = []
for (let after = 1; after <= all.length; after++) {
  const seen = []
  const resume = async (last, most) => {
    const control = new AbortController()
    const response = await fetch(`${api}/api/v2/agents/task/${taskId}/stream`, {
      headers: last ? { ...headers, 'last-event-id': last } : headers, signal: control.signal,
    })
    try {
      for await (const event of events(response)) {
        seen.push(event)
        if (seen.length === most) return control.abort()
      }
    } catch (error) {
      if (!control.signal.aborted) throw error
    }
  }
  await resume(undefined, after)
  await resume(seen.at(-1).id, Infinity)
  cuts.push({ After: after, Same: JSON.stringify(seen) === JSON.stringify(all) })
}

const refused = await post('  ')
console.log(JSON.stringify({
  Types: all.map((e) => e.data.type),
  Text: all.filter((e) => e.data.type === 'chunk').map((e) => e.data.content).join(''),
  Done: all.at(-1).data,
  Cuts: cuts,
  Refused: { Status: refused.status, Error: (await refused.json()).error },
}))
