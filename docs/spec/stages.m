-- The store protocol of docs/design.md, rules 1 to 8 and 10, in the language of the model checkers Murphi,
-- CMurphi and Rumur. Check it with `python -m tests.spec.check`; docs/spec/README.md explains the abstraction.
--
-- Two stages: `b` takes the product of `a`. Each rule is one operation on the store, or one step of a worker
-- between two operations, so a worker may stop for any time, or for ever, between any two of them.
-- A lease is no clock here: an idle worker may take the owner of an open attempt for dead at any moment,
-- also when that is wrong. What holds for all such judgements holds for each choice of leases.

const
  WORKERS: 2;
  ATTEMPTS: 3;      -- of each stage
  GENERATIONS: 2;   -- of each stage's product
  RETRIES: 1;       -- failures and losses of a stage that may be tried again
  CRASHES: 1;       -- of a worker; another one takes its place
  FAILURES: 1;      -- of a stage's own code
  LOST_REPLIES: 1;  -- creates that the store answers with an error, carried out or not, at once or later
  DISCARDS: 1;      -- `sweep discard` of one stage
  DAMAGES: 1;       -- products whose files are damaged
  REQUESTS: 2;      -- 1: a cancel; 2: and then a rerun
  RETAINS: true;    -- whether the input's files are deleted when `b` is done

type
  Worker: scalarset(WORKERS);
  Stage: enum {a, b};
  Number: 0..ATTEMPTS;
  Generation: 0..GENERATIONS;
  Event: enum {claims, takes, finishes, ends, voids, retires, requests};
  Ending: enum {open, succeeded, failed, released};
  Payload: enum {absent, partial, whole, damaged, deleted};
  Validity: enum {valid, broken, discarded};

  -- The state that a child computes: the generation of `a` in it, and the one of `b`; 0: none of that.
  Lineage: record of_a: Generation; of_b: Generation; end;

  Attempt: record
    claimed: boolean;       -- claim.json: owner, its life, generation, whether it supersedes an open attempt
    owner: Worker;
    life: 0..CRASHES;
    generation: Generation;
    supersedes: boolean;
    started: boolean;       -- start.json: generation of the input
    input: Generation;
    ending: Ending;         -- end.json
    saved: boolean;         -- a checkpoint, and what is in it
    state: Lineage;
    payload: Payload;       -- files of the output folder
  end;

  Product: record
    done: boolean;          -- done/<stage>/<digest>.<g>.json: the attempt, the generation of the input
    attempt: Number;
    input: Generation;
    state: Lineage;
    validity: Validity;     -- void/<stage>/<digest>.<g>.json
    retired: boolean;       -- retired/<stage>/<policy>/<digest>.<g>.json
    -- What the store does not hold, to judge by: it was made from files that were not all there.
    from_hole: boolean;
  end;

  Place: enum {idle, claiming, unsure, won, starting, running, fenced, reading, writing, finishing_files, checking,
               publishing, unsure_done, ending_well, giving_back, retiring};

  Process: record
    place: Place;
    life: 0..CRASHES;
    stage: Stage;
    number: Number;
    generation: Generation;
    supersedes: boolean;
    input: Generation;
    state: Lineage;
    -- To judge by:
    hole: boolean;          -- its input was not whole when it was read
    late: boolean;          -- the product existed when it became the owner
    cancelled: boolean;     -- the cell was cancelled when it looked
  end;

  Packet: record            -- a create that has not arrived yet
    sent: boolean;
    owner: Worker;
    life: 0..CRASHES;
    stage: Stage;
    number: Number;
    generation: Generation;
    supersedes: boolean;
  end;

var
  attempt: array [Stage] of array [1..ATTEMPTS] of Attempt;
  product: array [Stage] of array [1..GENERATIONS] of Product;
  worker: array [Worker] of Process;
  packet: Packet;
  num_requests: 0..REQUESTS;
  after: array [Stage] of Number;    -- of the rerun: only later attempts count against the budget
  crashes_left: 0..CRASHES;
  failures_left: 0..FAILURES;
  replies_left: 0..LOST_REPLIES;
  discards_left: 0..DISCARDS;
  damages_left: 0..DAMAGES;

-- observation: what the records of a real run show, see tests/spec/trace.py. Without a trace, nothing follows.
procedure observe(event: Event; s: Stage; number: 0..255; w: Worker; detail: 0..255);
begin
end;
-- end of observation

-- Whether a worker runs an attempt, and whether its child is at work.
function owns(p: Place): boolean;
begin
  return p != idle & p != claiming & p != unsure & p != retiring;
end;

function computes(p: Place): boolean;
begin
  return p = running | p = fenced | p = reading | p = writing | p = finishing_files;
end;

-- Decisions over records (orchestrator/core)

function last(s: Stage): Number;
var found: Number;
begin
  found := 0;
  for n: 1..ATTEMPTS do if attempt[s][n].claimed then found := n; end; end;
  return found;
end;

-- The generation that counts, or that the next attempt makes; 0 beyond the bound of this model.
function current(s: Stage): Generation;
begin
  for g: 1..GENERATIONS do if product[s][g].validity = valid then return g; end; end;
  return 0;
end;

function was_discarded(s: Stage; g: Generation): boolean;
begin
  return g != 0 & product[s][g].validity = discarded;
end;

-- Whether a `done` record counts: nothing voids it, its input was not discarded, no file is damaged.
function counts(s: Stage; g: Generation): boolean;
begin
  if g = 0 | !product[s][g].done | product[s][g].validity != valid then return false; end;
  if attempt[s][product[s][g].attempt].payload = damaged then return false; end;
  if attempt[s][product[s][g].attempt].payload = deleted then
    if !product[s][g].retired then return false; end;
  end;
  return s = a | !was_discarded(a, product[s][g].input);
end;

function is_available(): boolean;  -- whether `b` can read the product of `a`
begin
  return counts(a, current(a)) & !product[a][current(a)].retired;
end;

function spent_until(s: Stage; most: Number): 0..ATTEMPTS;
var found: 0..ATTEMPTS;
begin
  found := 0;
  for n: 1..ATTEMPTS do
    if n > after[s] & n <= most & attempt[s][n].claimed then
      if attempt[s][n].ending = failed then found := found + 1;
      elsif n < ATTEMPTS & attempt[s][n].ending != succeeded then
        if attempt[s][n + 1].claimed & attempt[s][n + 1].supersedes then found := found + 1; end;
      end;
    end;
  end;
  return found;
end;

function num_spent(s: Stage): 0..ATTEMPTS;
begin
  return spent_until(s, ATTEMPTS);
end;

function is_cancelled(): boolean;
begin
  return num_requests = 1;
end;

function is_claimable(s: Stage): boolean;
begin
  if current(s) = 0 | last(s) = ATTEMPTS then return false; end;
  if product[s][current(s)].done then return false; end;
  if s = b & !is_available() then return false; end;
  return !is_cancelled() & num_spent(s) <= RETRIES;
end;

-- Whether an attempt that owns (s, n, g) sees that what it makes cannot count any more.
function is_superseded(s: Stage; n: Number; g: Generation): boolean;
begin
  if product[s][g].done | product[s][g].validity != valid then return true; end;
  return n < ATTEMPTS & attempt[s][n + 1].claimed;
end;

-- Operations on the store

procedure write_claim(w: Worker; life: 0..CRASHES; s: Stage; n: Number; g: Generation; supersedes: boolean);
begin
  attempt[s][n].claimed := true;
  attempt[s][n].owner := w;
  attempt[s][n].life := life;
  attempt[s][n].generation := g;
  attempt[s][n].supersedes := supersedes;
  observe(claims, s, n, w, g);
end;

procedure rest(w: Worker);  -- back to looking, with nothing kept
begin
  worker[w].place := idle;
  worker[w].stage := a;
  worker[w].number := 0;
  worker[w].generation := 0;
  worker[w].supersedes := false;
  worker[w].input := 0;
  worker[w].state.of_a := 0;
  worker[w].state.of_b := 0;
  worker[w].hole := false;
  worker[w].late := false;
  worker[w].cancelled := false;
end;

procedure write_end(w: Worker; ending: Ending);
begin
  attempt[worker[w].stage][worker[w].number].ending := ending;
  observe(ends, worker[w].stage, worker[w].number, w, ending = succeeded ? 1 : (ending = failed ? 2 : 3));
  rest(w);
end;

startstate "an empty store"
begin
  for s: Stage do
    for n: 1..ATTEMPTS do
      clear attempt[s][n];
      undefine attempt[s][n].owner;
    end;
    for g: 1..GENERATIONS do clear product[s][g]; end;
    after[s] := 0;
  end;
  clear packet;
  undefine packet.owner;
  for w: Worker do worker[w].life := 0; rest(w); end;
  num_requests := 0;
  crashes_left := CRASHES;
  failures_left := FAILURES;
  replies_left := LOST_REPLIES;
  discards_left := DISCARDS;
  damages_left := DAMAGES;
end;

ruleset w: Worker do alias me: worker[w] do

  -- Rule 3. The highest attempt has ended, or there is none.
  ruleset s: Stage do
    rule "looks, and finds a stage to claim"
      me.place = idle & is_claimable(s) & (last(s) = 0 | attempt[s][last(s)].ending != open)
    ==>
    begin
      me.place := claiming;
      me.stage := s;
      me.number := last(s) + 1;
      me.generation := current(s);
      me.supersedes := false;
      me.input := s = b ? current(a) : 0;
      me.cancelled := is_cancelled();
    end;

    -- Rule 4. It has not; its owner counts as dead, rightly or wrongly.
    rule "takes the owner of an open attempt for dead"
      me.place = idle & is_claimable(s) & last(s) != 0 & attempt[s][last(s)].ending = open
      & num_spent(s) + (last(s) > after[s] ? 1 : 0) <= RETRIES
    ==>
    begin
      me.place := claiming;
      me.stage := s;
      me.number := last(s) + 1;
      me.generation := current(s);
      me.supersedes := true;
      me.input := s = b ? current(a) : 0;
      me.cancelled := is_cancelled();
    end;
  end;

  -- Rule 1. `create` writes if nothing is there. The reply may get lost, whatever happened.
  rule "creates the claim"
    me.place = claiming
  ==>
  begin
    if !attempt[me.stage][me.number].claimed then
      me.late := counts(me.stage, me.generation);
      write_claim(w, me.life, me.stage, me.number, me.generation, me.supersedes);
      me.place := won;
    else
      me.place := unsure;
    end;
  end;

  rule "creates the claim, and the reply is lost"
    me.place = claiming & replies_left > 0 & !attempt[me.stage][me.number].claimed
  ==>
  begin
    replies_left := replies_left - 1;
    me.late := counts(me.stage, me.generation);
    write_claim(w, me.life, me.stage, me.number, me.generation, me.supersedes);
    me.place := unsure;
  end;

  rule "creates the claim, and it arrives later, or never"
    me.place = claiming & replies_left > 0 & !packet.sent
  ==>
  begin
    replies_left := replies_left - 1;
    packet.sent := true;
    packet.owner := w;
    packet.life := me.life;
    packet.stage := me.stage;
    packet.number := me.number;
    packet.generation := me.generation;
    packet.supersedes := me.supersedes;
    me.place := unsure;
  end;

  rule "reads back whose claim it is"
    me.place = unsure
  ==>
  begin
    if !attempt[me.stage][me.number].claimed then
      me.place := claiming;  -- absent: try again
    elsif attempt[me.stage][me.number].owner = w & attempt[me.stage][me.number].life = me.life then
      me.place := won;       -- its nonce
    else
      rest(w);               -- another's
    end;
  end;

  -- After winning, look for the product again.
  rule "looks again after it won"
    me.place = won
  ==>
  begin
    if product[me.stage][me.generation].done | product[me.stage][me.generation].validity != valid then
      me.place := giving_back;
    elsif me.stage = b & product[a][me.input].retired then
      me.place := giving_back;
    else
      me.place := starting;
    end;
  end;

  -- Rule 6. The newest checkpoint that was not made of what was discarded.
  rule "records the start, and adopts a checkpoint"
    me.place = starting
  ==>
  begin
    attempt[me.stage][me.number].started := true;
    attempt[me.stage][me.number].input := me.input;
    me.state.of_a := me.stage = a ? me.generation : me.input;
    me.state.of_b := me.stage = b ? me.generation : 0;
    for n: 1..ATTEMPTS do
      if n < me.number & attempt[me.stage][n].saved
         & !was_discarded(me.stage, attempt[me.stage][n].generation)
         & !(me.stage = b & was_discarded(a, attempt[me.stage][n].input)) then
        me.state := attempt[me.stage][n].state;
      end;
    end;
    me.place := running;
  end;

  -- Rule 5. A look for a later attempt and for a product before each checkpoint.
  rule "looks whether it was superseded"
    me.place = running
  ==>
  begin
    me.place := is_superseded(me.stage, me.number, me.generation) ? giving_back : fenced;
  end;

  rule "saves a checkpoint in its own attempt"
    me.place = fenced
  ==>
  begin
    attempt[me.stage][me.number].saved := true;
    attempt[me.stage][me.number].state := me.state;
    me.place := reading;
  end;

  rule "reads its input"
    me.place = reading & !(me.stage = b & attempt[a][product[a][me.input].attempt].payload = damaged)
  ==>
  begin
    me.hole := me.stage = b & attempt[a][product[a][me.input].attempt].payload != whole;
    me.place := writing;
  end;

  rule "fails, since its input is damaged"
    me.place = reading & me.stage = b & attempt[a][product[a][me.input].attempt].payload = damaged
  ==>
  begin
    write_end(w, is_superseded(me.stage, me.number, me.generation) | product[a][me.input].retired ? released : failed);
  end;

  rule "writes a part of its files"
    me.place = writing
  ==>
  begin
    attempt[me.stage][me.number].payload := partial;
    me.place := finishing_files;
  end;

  rule "writes the rest of its files"
    me.place = finishing_files
  ==>
  begin
    attempt[me.stage][me.number].payload := whole;
    me.place := checking;
  end;

  -- Rule 7: what it saw of an input that is retired is uncertain. Rule 2: nothing is made from what was discarded.
  rule "looks whether its input still counts"
    me.place = checking
  ==>
  begin
    if me.stage = b & (product[a][me.input].retired | was_discarded(a, me.input)) then
      me.place := giving_back;
    else
      me.place := publishing;
    end;
  end;

  rule "creates done"
    me.place = publishing
  ==>
  begin
    if !product[me.stage][me.generation].done then
      observe(takes, me.stage, me.number, w, me.input);
      product[me.stage][me.generation].done := true;
      product[me.stage][me.generation].attempt := me.number;
      product[me.stage][me.generation].input := me.input;
      product[me.stage][me.generation].state := me.state;
      product[me.stage][me.generation].from_hole := me.hole;
      observe(finishes, me.stage, me.number, w, me.generation);
      me.place := ending_well;
    else
      me.place := unsure_done;
    end;
  end;

  rule "creates done, and the reply is lost"
    me.place = publishing & replies_left > 0
  ==>
  begin
    replies_left := replies_left - 1;
    if !product[me.stage][me.generation].done then
      observe(takes, me.stage, me.number, w, me.input);
      product[me.stage][me.generation].done := true;
      product[me.stage][me.generation].attempt := me.number;
      product[me.stage][me.generation].input := me.input;
      product[me.stage][me.generation].state := me.state;
      product[me.stage][me.generation].from_hole := me.hole;
      observe(finishes, me.stage, me.number, w, me.generation);
    end;
    me.place := unsure_done;
  end;

  rule "reads back whose done it is"
    me.place = unsure_done
  ==>
  begin
    if !product[me.stage][me.generation].done then
      me.place := publishing;
    elsif product[me.stage][me.generation].attempt = me.number then
      me.place := ending_well;
    else
      me.place := giving_back;
    end;
  end;

  rule "records a good end"
    me.place = ending_well
  ==>
  begin
    write_end(w, succeeded);
  end;

  rule "records that it gave the attempt back"
    me.place = giving_back
  ==>
  begin
    write_end(w, released);
  end;

  rule "fails, by its stage's code"
    failures_left > 0 & computes(me.place)
  ==>
  begin
    failures_left := failures_left - 1;
    if is_superseded(me.stage, me.number, me.generation) then
      write_end(w, released);
    elsif me.stage = b & product[a][me.input].retired then
      write_end(w, released);
    else
      write_end(w, failed);
    end;
  end;

  -- Rule 8.
  rule "stops after a cancel"
    is_cancelled() & computes(me.place)
  ==>
  begin
    me.place := giving_back;
  end;

  rule "crashes, and another process takes its place"
    crashes_left > 0 & me.place != idle
  ==>
  begin
    crashes_left := crashes_left - 1;
    me.life := me.life + 1;
    rest(w);
  end;

  -- Rule 2. A worker voids what is damaged after a second look, and what was made of what was discarded.
  ruleset s: Stage; g: 1..GENERATIONS do
    rule "voids a damaged product"
      me.place = idle & product[s][g].done & product[s][g].validity = valid
      & attempt[s][product[s][g].attempt].payload = damaged
    ==>
    begin
      product[s][g].validity := broken;
      observe(voids, s, g, w, 1);
    end;
  end;

  ruleset g: 1..GENERATIONS do
    rule "voids what was made from a discarded product"
      me.place = idle & product[b][g].done & product[b][g].validity = valid & was_discarded(a, product[b][g].input)
    ==>
    begin
      product[b][g].validity := discarded;
      observe(voids, b, g, w, 2);
    end;
  end;

  -- Rule 7. It decides by what it sees, and records that later.
  rule "sees that no stage needs the files of a product any more"
    RETAINS & me.place = idle & is_available() & counts(b, current(b)) & product[b][current(b)].input = current(a)
  ==>
  begin
    me.place := retiring;
    me.generation := current(a);
  end;

  rule "records that files are retired"
    me.place = retiring
  ==>
  begin
    if !product[a][me.generation].retired then
      product[a][me.generation].retired := true;
      observe(retires, a, me.generation, w, 0);
    end;
    rest(w);
  end;

  ruleset g: 1..GENERATIONS do
    rule "deletes retired files"
      me.place = idle & product[a][g].retired & attempt[a][product[a][g].attempt].payload = whole
    ==>
    begin
      attempt[a][product[a][g].attempt].payload := deleted;
    end;
  end;

end; end;

-- The network, the disk, and users

rule "a late create arrives"
  packet.sent
==>
begin
  if !attempt[packet.stage][packet.number].claimed then
    write_claim(packet.owner, packet.life, packet.stage, packet.number, packet.generation, packet.supersedes);
  end;
  clear packet;
  undefine packet.owner;
end;

rule "a late create never arrives"
  packet.sent
==>
begin
  clear packet;
  undefine packet.owner;
end;

ruleset s: Stage; g: 1..GENERATIONS do
  rule "files of a product are damaged"
    damages_left > 0 & product[s][g].done & attempt[s][product[s][g].attempt].payload = whole
  ==>
  begin
    damages_left := damages_left - 1;
    attempt[s][product[s][g].attempt].payload := damaged;
  end;
end;

ruleset s: Stage; w: Worker do
  rule "a user discards a product"
    discards_left > 0 & current(s) != 0 & product[s][current(s)].done
  ==>
  begin
    discards_left := discards_left - 1;
    observe(voids, s, current(s), w, 2);
    product[s][current(s)].validity := discarded;
  end;
end;

ruleset w: Worker do
  rule "a user cancels the cell"
    num_requests = 0 & REQUESTS >= 1
  ==>
  begin
    observe(requests, a, 1, w, 0);
    num_requests := 1;
  end;

  rule "a user runs it again"
    num_requests = 1 & REQUESTS >= 2
  ==>
  begin
    observe(requests, a, 2, w, 0);
    num_requests := 2;
    for s: Stage do after[s] := last(s); end;
  end;
end;

-- Where nothing is left to do. Any other state without a next step is a deadlock.

function is_excused(s: Stage): boolean;  -- why a stage may stay without a product
begin
  if is_cancelled() | current(s) = 0 | last(s) = ATTEMPTS | num_spent(s) > RETRIES then return true; end;
  if last(s) != 0 & num_spent(s) = RETRIES & last(s) > after[s] then
    if attempt[s][last(s)].ending = open then return true; end;  -- the last retry was lost too
  end;
  if s = b & current(a) != 0 then
    if counts(a, current(a)) & product[a][current(a)].retired then return true; end;  -- blocked until a discard
  end;
  return false;
end;

function is_settled(): boolean;
begin
  for w: Worker do if worker[w].place != idle then return false; end; end;
  if counts(b, current(b)) then return true; end;
  return is_excused(b) | (!is_available() & is_excused(a));
end;

rule "rests"
  is_settled()
==>
begin
end;

liveness "from every state, the cell can be done, or there is a reason why it is not"
  is_settled();

-- Invariants. The number is that of the rule in docs/design.md.

invariant "1: an attempt has one owner at most"
  forall w: Worker do forall v: Worker do
    w != v & owns(worker[w].place)
    & owns(worker[v].place) & worker[w].stage = worker[v].stage
    -> worker[w].number != worker[v].number
  end end;

invariant "1: who owns an attempt is named by its claim"
  forall w: Worker do
    owns(worker[w].place)
    -> attempt[worker[w].stage][worker[w].number].claimed
       & attempt[worker[w].stage][worker[w].number].owner = w
       & attempt[worker[w].stage][worker[w].number].life = worker[w].life
  end;

invariant "2: files are whole before the record that names them"
  forall s: Stage do forall g: 1..GENERATIONS do
    product[s][g].done -> attempt[s][product[s][g].attempt].payload != absent
    & attempt[s][product[s][g].attempt].payload != partial
  end end;

invariant "2: a product is of the generation that its attempt's claim fixed"
  forall s: Stage do forall g: 1..GENERATIONS do
    product[s][g].done -> attempt[s][product[s][g].attempt].generation = g
  end end;

invariant "2: an attempt that succeeded has the product"
  forall s: Stage do forall n: 1..ATTEMPTS do
    attempt[s][n].ending = succeeded -> product[s][attempt[s][n].generation].attempt = n
  end end;

invariant "2: only what is damaged or was discarded is void"
  forall s: Stage do forall g: 1..GENERATIONS do
    product[s][g].validity = broken -> attempt[s][product[s][g].attempt].payload = damaged
  end end;

invariant "2: what counts was not made from what was discarded"
  forall g: 1..GENERATIONS do
    counts(b, g) -> !was_discarded(a, product[b][g].input) & !was_discarded(a, product[b][g].state.of_a)
                    & !was_discarded(b, product[b][g].state.of_b)
  end;

invariant "3: attempts are numbered without a gap"
  forall s: Stage do forall n: 2..ATTEMPTS do attempt[s][n].claimed -> attempt[s][n - 1].claimed end end;

invariant "3: no attempt starts where the product was there when it was claimed"
  forall w: Worker do worker[w].late & owns(worker[w].place)
    -> worker[w].place = won | worker[w].place = giving_back
  end;

invariant "3: an attempt that was followed has an end, or its successor gives the cause"
  forall s: Stage do forall n: 2..ATTEMPTS do
    attempt[s][n].claimed & attempt[s][n - 1].ending = open -> attempt[s][n].supersedes
  end end;

invariant "3: a stage is started only while its budget lasts"
  forall s: Stage do last(s) != 0 -> spent_until(s, last(s) - 1) <= RETRIES end;

invariant "5: nothing of an attempt runs after its end"
  forall w: Worker do
    owns(worker[w].place)
    -> attempt[worker[w].stage][worker[w].number].ending = open
  end;

invariant "6: an attempt goes on from nothing that was made of what was discarded before its start"
  forall s: Stage do forall g: 1..GENERATIONS do
    s = a & product[s][g].done -> product[s][g].state.of_a = g | !was_discarded(a, product[s][g].state.of_a)
  end end;

invariant "7: a file that is gone was retired first"
  forall g: 1..GENERATIONS do
    product[a][g].done & attempt[a][product[a][g].attempt].payload = deleted -> product[a][g].retired
  end;

invariant "7: what read an input that was not whole makes no product"
  forall g: 1..GENERATIONS do !product[b][g].from_hole end;

invariant "8: no stage is claimed by a look after a cancel"
  forall w: Worker do !worker[w].cancelled end;
