"""Sentences, questions and values of biographies: fifty wordings for each of six attributes.

`{n}` is the person, `{v}` the value. `{n}` may become "he" or "she" (with a capital at the head of a sentence), `{n}'s`
"his" or "her", and `{m}`, the person as an object, "him" or "her". Every wording ends with its value. Values are drawn
from the head of their lists, so that a smaller pool is a part of a larger one.
"""

from __future__ import annotations

MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)

CITIES = tuple(
    """
New York|Chicago|Houston|Phoenix|Dallas|Austin|Seattle|Denver|Boston|Detroit|Memphis|Portland|Tucson|Fresno|Atlanta
Omaha|Oakland|Tulsa|Tampa|Wichita|Cleveland|Honolulu|Newark|Lincoln|Toledo|Orlando|Laredo|Madison|Norfolk|Reno|Buffalo
Richmond|Spokane|Tacoma|Modesto|Boise|Yonkers|Akron|Mobile|Shreveport|Rochester|Augusta|Amarillo|Mesquite|Dayton
Savannah|Pasadena|Salem|Eugene|Peoria|Hartford|Topeka|Denton|Waco|Killeen|Stamford|Concord|Evansville|Lafayette|Athens
Springfield|Hollywood|Bellevue|Gainesville|Sarasota|Lansing|Visalia|Fargo|Provo|Boulder|Trenton|Albany|Juneau|Helena
Cheyenne|Pierre|Bismarck|Olympia|Dover|Annapolis|Montpelier|Burlington|Nashua|Bangor|Portsmouth|Quincy|Salinas|Ventura
Yuma|Flagstaff|Durango|Pueblo|Roswell|Santa Fe|Las Cruces|Lubbock|Midland|Odessa|Abilene|Galveston|Beaumont|Tyler
Monroe|Biloxi|Hattiesburg|Meridian|Pensacola|Tallahassee|Ocala|Macon|Columbus|Valdosta|Charleston|Greenville|Asheville
Raleigh|Durham|Wilmington|Roanoke|Lynchburg|Wheeling|Lexington|Louisville|Owensboro|Knoxville|Chattanooga|Nashville
Jackson|Huntsville|Decatur|Dothan|Selma|Auburn|Little Rock|Fayetteville|Bentonville|Joplin|Branson|Sedalia|Jefferson
Ames|Dubuque|Davenport|Waterloo|Cedar Rapids|Moline|Rockford|Joliet|Aurora|Naperville|Elgin|Gary|Muncie|Terre Haute
Kokomo|Bloomington|Kalamazoo|Flint|Saginaw|Marquette|Duluth|Mankato|Rapid City|Sioux Falls|Billings|Bozeman|Missoula
Butte|Casper|Laramie|Ogden|Logan|Moab|Elko|Carson City|Redding|Chico|Eureka|Napa|Monterey|Fremont|Hayward|Vallejo
Compton|Torrance|Pomona|Anaheim|Riverside|Oceanside|Escondido|Hilo|Fairbanks|Sitka|Nome|Medford|Bend|Astoria|Yakima
Walla Walla|Everett|Bellingham|Ithaca
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

MAJORS = tuple(
    """
Biology|Physics|Chemistry|Mathematics|History|Philosophy|Economics|Sociology|Psychology|Geology|Botany|Zoology|Law
Medicine|Nursing|Astronomy|Linguistics|Anthropology|Architecture|Statistics|Accounting|Marketing|Finance|Music|Theater
Journalism|Education|Geography|Theology|Agriculture|Forestry|Genetics|Ecology|Dentistry|Pharmacy|Optics|Acoustics
Robotics|Logistics|Management|Archaeology|Classics|Criminology|Dance|Design|Drama|Drawing|Engineering|Ethics|Film
Folklore|Horticulture|Hydrology|Immunology|Insurance|Kinesiology|Literature|Metallurgy|Meteorology|Microbiology
Mineralogy|Neuroscience|Nutrition|Oceanography|Oncology|Optometry|Painting|Paleontology|Parasitology|Pathology
Pediatrics|Petrology|Philology|Photography|Physiology|Poetry|Politics|Printing|Psychiatry|Radiology|Rhetoric|Sculpture
Seismology|Semiotics|Surgery|Surveying|Taxation|Textiles|Tourism|Toxicology|Translation|Typography|Urbanism|Virology
Viticulture|Volcanology|Weaving|Woodworking|Informatics|Cartography
""".replace("\n", "|")
    .strip("|")
    .split("|")
)

SCHOOLS = ("{} College", "{} University", "University of {}")
FIRMS = ("{}", "{} Systems", "{} Group", "{} Foods", "{} Motors")
"""What an invented name becomes; smaller pools take the plainest form of every name first."""

QUESTIONS = {
    "birth_date": "What is the birth date of {n}?",
    "birth_city": "What is the birth city of {n}?",
    "university": "Which university did {n} study at?",
    "major": "What major did {n} study?",
    "employer": "Which company did {n} work for?",
    "work_city": "Where did {n} work?",
}
ATTRIBUTES = tuple(QUESTIONS)
"""In the order in which a biography that is not permuted states them."""

_BIRTH_DATE = """
{n} was born on {v}.
{n} came into the world on {v}.
{n} entered this world on {v}.
{n} celebrates a birthday on {v}.
{n} first saw daylight on {v}.
{n} drew a first breath on {v}.
{n} has a birth certificate dated {v}.
{n}'s birth date is {v}.
{n}'s birthday is {v}.
{n}'s life began on {v}.
{n}'s story started on {v}.
{n}'s day of birth was {v}.
{n}'s arrival was noted on {v}.
{n}'s parents welcomed a child on {v}.
{n}'s birth was registered on {v}.
{n}'s first day on earth was {v}.
{n} was delivered on {v}.
{n} was brought into life on {v}.
{n} was welcomed by the family on {v}.
{n} was a newborn on {v}.
{n} started life on {v}.
{n} began life on {v}.
{n} arrived on {v}.
{n} appeared in this world on {v}.
{n} joined the family on {v}.
{n} opened both eyes for the first time on {v}.
{n} counts the years since {v}.
{n} lists the date of birth as {v}.
{n} marks every year the day of {v}.
{n} blows out the candles for {v}.
{n} owes a horoscope to {v}.
{n} took the first cry on {v}.
{n} can be congratulated on being born on {v}.
{n} gives the date of birth as {v}.
{n} is known to have been born on {v}.
{n} holds a passport with the birth date {v}.
{n} came to life on {v}.
{n} made an entrance into life on {v}.
{n} was given to happy parents on {v}.
{n} turned up in the cradle on {v}.
The birth of {m} took place on {v}.
The birth of {m} fell on {v}.
The records say {n} was born on {v}.
The life of {m} began on {v}.
The birthday of {m} is {v}.
The calendar showed for {m} the birth date {v}.
The day on which {n} was born is {v}.
It is written that {n} was born on {v}.
Friends congratulate {m} each year on {v}.
A midwife met {m} on {v}.
"""
_BIRTH_CITY = """
{n} was born in {v}.
{n} came into the world in {v}.
{n} hails from {v}.
{n} is a native of {v}.
{n} originates from {v}.
{n} spent the first years in {v}.
{n} took the first steps in {v}.
{n} grew up near a hospital in {v}.
{n} comes from {v}.
{n} calls as a birthplace {v}.
{n} first opened both eyes in {v}.
{n} owes a birthplace to {v}.
{n} started out in {v}.
{n} had a cradle in {v}.
{n} has roots in {v}.
{n} has a birth certificate from {v}.
{n} entered life in {v}.
{n} began the journey of life in {v}.
{n} was delivered at a clinic in {v}.
{n} was a child of {v}.
{n} was raised by parents from {v}.
{n} was welcomed into life in {v}.
{n} was brought up in the town of {v}.
{n} was baptized in {v}.
{n}'s birthplace is {v}.
{n}'s home town is {v}.
{n}'s birth city is {v}.
{n}'s first home stood in {v}.
{n}'s family lived in {v}.
{n}'s parents had settled in {v}.
{n}'s early days passed in {v}.
{n}'s origins lie in {v}.
{n}'s cradle stood in {v}.
{n}'s mother gave birth in {v}.
{n}'s life began in {v}.
{n}'s childhood memories are of {v}.
The birth of {m} took place in {v}.
The birthplace of {m} is {v}.
The home town of {m} is {v}.
The story of {m} begins in {v}.
The family of {m} came from {v}.
The streets that {n} first knew are in {v}.
The hospital where {n} was born is in {v}.
The city in which {n} was born is {v}.
It is said that {n} was born in {v}.
The records place {m} at birth in {v}.
A plaque for {m} hangs in {v}.
Neighbors remember {m} as a baby in {v}.
As a child {n} lived in {v}.
Life for {m} started in {v}.
"""
_UNIVERSITY = """
{n} studied at {v}.
{n} graduated from {v}.
{n} attended {v}.
{n} went to {v}.
{n} enrolled at {v}.
{n} took a degree at {v}.
{n} earned a degree at {v}.
{n} completed a degree at {v}.
{n} finished all courses at {v}.
{n} received an education at {v}.
{n} spent four years at {v}.
{n} passed the exams at {v}.
{n} learned from professors at {v}.
{n} sat in the lectures of {v}.
{n} holds a diploma from {v}.
{n} holds a degree from {v}.
{n} is an alumnus of {v}.
{n} is a graduate of {v}.
{n} matriculated at {v}.
{n} wrote a thesis at {v}.
{n} was a student at {v}.
{n} was admitted to {v}.
{n} was educated at {v}.
{n} was taught at {v}.
{n} was trained at {v}.
{n} was on the campus of {v}.
{n} was awarded a diploma by {v}.
{n} lived in a dormitory of {v}.
{n} won a scholarship to {v}.
{n} owes a good education to {v}.
{n}'s alma mater is {v}.
{n}'s university was {v}.
{n}'s college years passed at {v}.
{n}'s degree is from {v}.
{n}'s diploma was issued by {v}.
{n}'s studies led to {v}.
{n}'s professors taught at {v}.
{n}'s higher education came from {v}.
{n}'s academic home was {v}.
The university of {m} was {v}.
The alma mater of {m} is {v}.
The studies of {m} took place at {v}.
The diploma of {m} came from {v}.
The professors of {m} worked at {v}.
The student days of {m} were spent at {v}.
After school {n} enrolled at {v}.
For a degree {n} went to {v}.
As a student {n} was at {v}.
Classmates met {m} at {v}.
Every reunion brings {m} back to {v}.
"""
_MAJOR = """
{n} majored in {v}.
{n} studied {v}.
{n} specialized in {v}.
{n} has a degree in {v}.
{n} earned a degree in {v}.
{n} took a degree in {v}.
{n} completed a program in {v}.
{n} holds a diploma in {v}.
{n} chose to study {v}.
{n} focused on {v}.
{n} concentrated on {v}.
{n} devoted the student years to {v}.
{n} read many books on {v}.
{n} wrote a thesis on {v}.
{n} passed exams in {v}.
{n} took every course in {v}.
{n} developed a passion for {v}.
{n} explored the theory of {v}.
{n} received training in {v}.
{n} gained knowledge of {v}.
{n} pursued an education in {v}.
{n} was drawn to {v}.
{n} was a student of {v}.
{n} was a scholar of {v}.
{n} was taught {v}.
{n} was trained in {v}.
{n} was absorbed by lectures on {v}.
{n} was examined in {v}.
{n} was awarded a degree in {v}.
{n} is a graduate in {v}.
{n}'s major was {v}.
{n}'s field of study was {v}.
{n}'s degree is in {v}.
{n}'s subject was {v}.
{n}'s thesis dealt with {v}.
{n}'s favorite course was {v}.
{n}'s academic interest was {v}.
{n}'s diploma is in {v}.
{n}'s lectures were on {v}.
{n}'s studies centered on {v}.
The major of {m} was {v}.
The subject that {n} chose was {v}.
The field that {n} studied was {v}.
The degree of {m} is in {v}.
The thesis of {m} was about {v}.
The lectures that {n} heard were on {v}.
The main interest of {m} was {v}.
As a student {n} majored in {v}.
In class {n} learned {v}.
Of all subjects {n} preferred {v}.
"""
_EMPLOYER = """
{n} worked for {v}.
{n} was employed by {v}.
{n} had a job at {v}.
{n} held a position at {v}.
{n} built a career at {v}.
{n} joined {v}.
{n} signed a contract with {v}.
{n} earned a salary at {v}.
{n} contributed to the growth of {v}.
{n} led a team at {v}.
{n} took up a post at {v}.
{n} found work with {v}.
{n} served on the staff of {v}.
{n} spent a working life at {v}.
{n} rose through the ranks of {v}.
{n} got an office at {v}.
{n} received an offer from {v}.
{n} accepted a role at {v}.
{n} gained experience at {v}.
{n} reported to the board of {v}.
{n} was hired by {v}.
{n} was on the payroll of {v}.
{n} was an employee of {v}.
{n} was recruited by {v}.
{n} was a manager at {v}.
{n} was engaged by {v}.
{n} was given a job by {v}.
{n} was promoted at {v}.
{n} was a colleague of many at {v}.
{n} was appointed by {v}.
{n}'s employer was {v}.
{n}'s company was {v}.
{n}'s career unfolded at {v}.
{n}'s job was with {v}.
{n}'s contract was with {v}.
{n}'s salary was paid by {v}.
{n}'s desk stood at {v}.
{n}'s boss ran {v}.
{n}'s talents served {v}.
{n}'s business card reads {v}.
The employer of {m} was {v}.
The company of {m} was {v}.
The career of {m} was made at {v}.
The firm that hired {m} was {v}.
The salary of {m} came from {v}.
The colleagues of {m} were at {v}.
The working days of {m} were spent at {v}.
On weekdays {n} worked for {v}.
For a living {n} worked for {v}.
After some interviews {n} joined {v}.
"""
_WORK_CITY = """
{n} worked in {v}.
{n} had a job in {v}.
{n} was employed in {v}.
{n} held a position in {v}.
{n} built a career in {v}.
{n} earned a living in {v}.
{n} had an office in {v}.
{n} commuted every day to {v}.
{n} moved for work to {v}.
{n} found employment in {v}.
{n} took a job in {v}.
{n} practiced a profession in {v}.
{n} spent the working week in {v}.
{n} went to meetings in {v}.
{n} had a desk in {v}.
{n} drove to work in {v}.
{n} pursued a career in {v}.
{n} gained work experience in {v}.
{n} rented a flat near work in {v}.
{n} paid taxes as a worker in {v}.
{n} was hired in {v}.
{n} was stationed in {v}.
{n} was posted to {v}.
{n} was active in {v}.
{n} was at work in {v}.
{n} was sent by the company to {v}.
{n} was seen at work in {v}.
{n} was a worker in {v}.
{n} was based in {v}.
{n} was on duty in {v}.
{n}'s workplace was in {v}.
{n}'s office was in {v}.
{n}'s job was in {v}.
{n}'s career unfolded in {v}.
{n}'s work took place in {v}.
{n}'s company sat in {v}.
{n}'s daily commute ended in {v}.
{n}'s desk stood in {v}.
{n}'s working life passed in {v}.
{n}'s professional home was {v}.
The workplace of {m} was in {v}.
The office of {m} was in {v}.
The job of {m} was in {v}.
The work of {m} was done in {v}.
The career of {m} began in {v}.
The commute of {m} led to {v}.
The professional life of {m} was in {v}.
On weekdays {n} worked in {v}.
For work {n} lived in {v}.
Every morning {n} went to work in {v}.
"""


def _lines(text: str) -> tuple[str, ...]:
    return tuple(text.strip().splitlines())


SENTENCES: dict[str, tuple[str, ...]] = {
    "birth_date": _lines(_BIRTH_DATE),
    "birth_city": _lines(_BIRTH_CITY),
    "university": _lines(_UNIVERSITY),
    "major": _lines(_MAJOR),
    "employer": _lines(_EMPLOYER),
    "work_city": _lines(_WORK_CITY),
}
