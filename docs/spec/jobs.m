-- Requests, submissions and jobs of docs/design.md: rule 8, and rules 1 to 3 of "Jobs of a scheduler".
-- Check it with `python -m tests.spec.check jobs`; docs/spec/README.md explains the abstraction.
--
-- One cell, launches that run at once, and a scheduler whose replies get lost, which carries out what it was
-- sent at once, later or never, forgets what is over, and starts anew what ran on a node that failed.

const
  LAUNCHES: 2;       -- processes that launch, reconcile and cancel, at once
  NUMBERS: 3;        -- of submissions
  REQUESTS: 2;       -- launch, cancel, launch, ...
  CRASHES: 1;        -- of such a process
  LOST_REPLIES: 1;   -- of the scheduler or the store
  NODE_FAILURES: 1;  -- that end a job
  RESTARTS: 1;       -- by the scheduler, of a job whose node failed
  FORGETS: 1;        -- jobs that the scheduler forgets when they are over
  GAPS: 2;           -- listings that are not complete
  RETRIES: 1;        -- jobs that may end without the cell being done, and be followed by another
  SETTLES: true;     -- whether what follows an intent reaches the scheduler within settle_s, or never

type
  Launch: scalarset(LAUNCHES);
  Number: 0..NUMBERS;
  Phase: enum {unknown, queued, running, over};
  Closing: enum {open, ended, given_up};
  Event: enum {requests, files, accepts, closes};
  Verb: enum {launch, cancel};
  Place: enum {idle, requesting, filing, unsure, submitting, recording, looking_again, closing};

  Submission: record
    filed: boolean;       -- submissions/<n>.json: the intent, and who wrote it
    filer: Launch;
    life: 0..CRASHES;
    accepted: boolean;    -- <n>/job.json: the scheduler's id
    closed: Closing;      -- <n>/closings/<k>.json
    reported: boolean;    -- <n>/reports/<index>.<restart>.json: the job's own last words
    -- The scheduler's side
    in_transit: boolean;
    phase: Phase;
    forgotten: boolean;
    works: boolean;       -- the job has looked for a closing, found none, and may claim stages
    was_given_up: boolean; -- to judge by: when its job started
  end;

  Process: record
    place: Place;
    life: 0..CRASHES;
    number: Number;
    request: 0..REQUESTS;
    verb: Verb;
    ending: Closing;      -- what it is about to record
  end;

var
  submission: array [1..NUMBERS] of Submission;
  process: array [Launch] of Process;
  num_requests: 0..REQUESTS;
  last_verb: Verb;
  requested_twice: boolean;  -- to judge by: two equal requests were recorded one after the other
  is_done: boolean;
  crashes_left: 0..CRASHES;
  replies_left: 0..LOST_REPLIES;
  failures_left: 0..NODE_FAILURES;
  restarts_left: 0..RESTARTS;
  forgets_left: 0..FORGETS;
  gaps_left: 0..GAPS;

-- observation: what the records of a real run show, see tests/spec/trace.py. Without a trace, nothing follows.
procedure observe(event: Event; number: 0..255; l: Launch; detail: 0..255);
begin
end;
-- end of observation

function last(): Number;
var found: Number;
begin
  found := 0;
  for k: 1..NUMBERS do if submission[k].filed then found := k; end; end;
  return found;
end;

-- Held: by its last task, until that is over, which only a positive statement shows.
function is_held(): boolean;
begin
  for k: 1..NUMBERS do if submission[k].filed & submission[k].closed = open then return true; end; end;
  return false;
end;

function num_spent(): 0..NUMBERS;
var found: 0..NUMBERS;
begin
  found := 0;
  for k: 1..NUMBERS do if submission[k].closed = ended & !is_done then found := found + 1; end; end;
  return found;
end;

function is_wanted(): boolean;
begin
  return num_requests > 0 & last_verb = launch & !is_done & last() < NUMBERS & num_spent() <= RETRIES;
end;

-- Whether anything of a submission may still become a job.
function may_arrive(k: 1..NUMBERS): boolean;
begin
  if submission[k].in_transit then return true; end;
  for l: Launch do
    if process[l].number = k & submission[k].filed & submission[k].filer = l
       & (process[l].place = submitting | process[l].place = unsure) then
      return true;
    end;
  end;
  return false;
end;

procedure rest(l: Launch);
begin
  process[l].place := idle;
  process[l].number := 0;
  process[l].request := 0;
  process[l].verb := launch;
  process[l].ending := open;
end;

startstate "nothing was requested"
begin
  for k: 1..NUMBERS do clear submission[k]; undefine submission[k].filer; end;
  for l: Launch do process[l].life := 0; rest(l); end;
  num_requests := 0;
  last_verb := launch;
  requested_twice := false;
  is_done := false;
  crashes_left := CRASHES;
  replies_left := LOST_REPLIES;
  failures_left := NODE_FAILURES;
  restarts_left := RESTARTS;
  forgets_left := FORGETS;
  gaps_left := GAPS;
end;

ruleset l: Launch do alias me: process[l] do

  -- Rule 8. A request is created under the next number; two equal ones are one.
  ruleset v: Verb do
    rule "decides that a request is due"
      me.place = idle & num_requests < REQUESTS & (num_requests = 0 ? v = launch : last_verb != v)
    ==>
    begin
      me.place := requesting;
      me.request := num_requests + 1;
      me.verb := v;
    end;
  end;

  rule "creates the request"
    me.place = requesting
  ==>
  begin
    if num_requests < me.request then
      if num_requests > 0 & last_verb = me.verb then requested_twice := true; end;
      num_requests := me.request;
      last_verb := me.verb;
      observe(requests, me.request, l, me.verb = launch ? 1 : 2);
    end;
    rest(l);  -- another's: read again, and decide anew
  end;

  -- Jobs, rule 1. Intent first.
  rule "sees a cell that no job holds"
    me.place = idle & is_wanted() & !is_held()
  ==>
  begin
    me.place := filing;
    me.number := last() + 1;
  end;

  rule "creates the intent"
    me.place = filing
  ==>
  begin
    if !submission[me.number].filed then
      submission[me.number].filed := true;
      submission[me.number].filer := l;
      submission[me.number].life := me.life;
      observe(files, me.number, l, 0);
      me.place := submitting;
    else
      me.place := unsure;
    end;
  end;

  rule "creates the intent, and the reply is lost"
    me.place = filing & replies_left > 0 & !submission[me.number].filed
  ==>
  begin
    replies_left := replies_left - 1;
    submission[me.number].filed := true;
    submission[me.number].filer := l;
    submission[me.number].life := me.life;
    observe(files, me.number, l, 0);
    me.place := unsure;
  end;

  rule "reads back whose intent it is"
    me.place = unsure
  ==>
  begin
    if submission[me.number].filer = l & submission[me.number].life = me.life then
      me.place := submitting;
    else
      rest(l);  -- read everything anew
    end;
  end;

  rule "submits, and the scheduler accepts"
    me.place = submitting
  ==>
  begin
    submission[me.number].phase := queued;
    me.place := recording;
  end;

  rule "submits, and the reply is lost"
    me.place = submitting & replies_left > 0
  ==>
  begin
    replies_left := replies_left - 1;
    submission[me.number].phase := queued;
    rest(l);
  end;

  rule "submits, and it arrives later, or never"
    me.place = submitting & replies_left > 0
  ==>
  begin
    replies_left := replies_left - 1;
    submission[me.number].in_transit := true;
    rest(l);
  end;

  rule "submits, and the scheduler refuses"
    me.place = submitting
  ==>
  begin
    me.place := closing;
    me.ending := given_up;
  end;

  rule "records the id"
    me.place = recording
  ==>
  begin
    submission[me.number].accepted := true;
    observe(accepts, me.number, l, 0);
    rest(l);
  end;

  rule "crashes, and another one goes on"
    crashes_left > 0 & me.place != idle
  ==>
  begin
    crashes_left := crashes_left - 1;
    me.life := me.life + 1;
    rest(l);
  end;

  -- Reconciling. A listing that is complete shows each job that lives; one with a gap may lack any.
  ruleset k: 1..NUMBERS do
    rule "finds a lost job by its name"
      me.place = idle & submission[k].filed & !submission[k].accepted & submission[k].closed = open
      & submission[k].phase != unknown & !submission[k].forgotten
    ==>
    begin
      submission[k].accepted := true;
      observe(accepts, k, l, 0);
    end;

    rule "does not find it"
      me.place = idle & submission[k].filed & !submission[k].accepted & submission[k].closed = open
      & (submission[k].phase = unknown | submission[k].forgotten)
    ==>
    begin
      me.place := looking_again;
      me.number := k;
    end;

    rule "sees that a job is over"
      me.place = idle & submission[k].accepted & submission[k].closed = open & submission[k].phase = over
      & (!submission[k].forgotten | submission[k].reported)
    ==>
    begin
      me.place := closing;
      me.number := k;
      me.ending := ended;
    end;

    rule "does not see a job in a listing"
      me.place = idle & submission[k].accepted & submission[k].closed = open & !submission[k].reported
      & (submission[k].phase = unknown | submission[k].forgotten)
    ==>
    begin
      me.place := looking_again;
      me.number := k;
    end;
  end;

  rule "misses a job in a listing with a gap"
    me.place = idle & gaps_left > 0 & last() > 0
  ==>
  begin
    gaps_left := gaps_left - 1;
    -- Rule 2: silence holds the cell.
  end;

  -- settle_s later.
  rule "looks again, and finds it"
    me.place = looking_again & submission[me.number].phase != unknown & !submission[me.number].forgotten
  ==>
  begin
    rest(l);
  end;

  rule "looks again in vain"
    me.place = looking_again & (submission[me.number].phase = unknown | submission[me.number].forgotten)
    & (!SETTLES | !may_arrive(me.number))
  ==>
  begin
    me.place := closing;
    me.ending := submission[me.number].accepted ? ended : given_up;
  end;

  rule "records an end"
    me.place = closing
  ==>
  begin
    if submission[me.number].closed = open then
      submission[me.number].closed := me.ending;
      observe(closes, me.number, l, me.ending = ended ? 1 : 2);
    end;
    rest(l);
  end;

  ruleset k: 1..NUMBERS do
    rule "cancels a job"
      me.place = idle & num_requests > 0 & last_verb = cancel & submission[k].accepted
      & (submission[k].phase = queued | submission[k].phase = running)
    ==>
    begin
      submission[k].phase := over;
      submission[k].works := false;
    end;
  end;

end; end;

-- The scheduler, and its jobs

ruleset k: 1..NUMBERS do alias it: submission[k] do
  rule "a late submission arrives"
    it.in_transit
  ==>
  begin
    it.in_transit := false;
    it.phase := queued;
  end;

  rule "a late submission never arrives"
    it.in_transit
  ==>
  begin
    it.in_transit := false;
  end;

  rule "a job starts"
    it.phase = queued
  ==>
  begin
    it.phase := running;
    it.was_given_up := it.closed = given_up;
    it.works := it.closed = open;  -- what was given up claims nothing
  end;

  rule "a job finishes the cell"
    it.phase = running & it.works
  ==>
  begin
    is_done := true;
    it.works := false;
    it.reported := true;
    it.phase := over;
  end;

  rule "a job has nothing to claim, and ends"
    it.phase = running & (!it.works | is_done)
  ==>
  begin
    it.works := false;
    it.reported := true;
    it.phase := over;
  end;

  rule "a node fails"
    it.phase = running & failures_left > 0
  ==>
  begin
    failures_left := failures_left - 1;
    it.works := false;
    it.phase := over;
  end;

  rule "a node fails, and the job is started anew"
    it.phase = running & failures_left > 0 & restarts_left > 0
  ==>
  begin
    failures_left := failures_left - 1;
    restarts_left := restarts_left - 1;
    it.works := false;
    it.phase := queued;
  end;

  rule "the scheduler forgets a job that is over"
    it.phase = over & forgets_left > 0 & !it.forgotten
  ==>
  begin
    forgets_left := forgets_left - 1;
    it.forgotten := true;
  end;
end; end;

function is_settled(): boolean;
begin
  for l: Launch do if process[l].place != idle then return false; end; end;
  for k: 1..NUMBERS do
    if submission[k].in_transit | submission[k].phase = queued | submission[k].phase = running then return false; end;
    if submission[k].filed & submission[k].closed = open then return false; end;
  end;
  return is_done | !is_wanted();
end;

rule "rests"
  is_settled()
==>
begin
end;

liveness "from every state, the cell can be done, or there is a reason why it is not"
  is_settled();

invariant "1: two launches at once give a cell no two jobs that work"
  SETTLES -> forall j: 1..NUMBERS do forall k: 1..NUMBERS do
    j != k -> !(submission[j].works & submission[k].works)
  end end;

invariant "1: the scheduler is asked for nothing without an intent"
  forall k: 1..NUMBERS do submission[k].phase != unknown | submission[k].in_transit -> submission[k].filed end;

invariant "1: a job that starts from a task that was given up claims nothing"
  forall k: 1..NUMBERS do !(submission[k].works & submission[k].was_given_up) end;

invariant "1: who lost the number submits nothing"
  forall l: Launch do
    process[l].place = submitting | process[l].place = recording
    -> submission[process[l].number].filer = l & submission[process[l].number].life = process[l].life
  end;

invariant "2: a job that lives holds its cell"
  SETTLES -> forall k: 1..NUMBERS do
    submission[k].phase = queued | submission[k].phase = running -> submission[k].closed = open
  end;

invariant "2: a cell is held by one task at most"
  forall j: 1..NUMBERS do forall k: 1..NUMBERS do
    j != k & submission[j].filed & submission[k].filed -> submission[j].closed != open | submission[k].closed != open
  end end;

invariant "3: jobs are submitted only while the budget lasts"
  num_spent() <= RETRIES + 1;

invariant "8: two equal requests are one"
  !requested_twice;
